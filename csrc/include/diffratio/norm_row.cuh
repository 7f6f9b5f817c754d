// A row that is normed, or as it is, and its gradient: what adaLN, gate_residual and scatter_rescale share.
#pragma once

#include "arguments.h"
#include "row.cuh"

namespace diffratio::cuda {

// Every pass reads it, the later ones out of the cache: rows that stay in registers, and gates and weights beside them,
// take 90 to 170 of a thread, which halves the rows in flight.
template <class T, bool kAligned, bool kNormed> class NormRow {
 public:
  static constexpr int n = kStep<T, kAligned>;

  __device__ __forceinline__ NormRow(const T* row, int width, const RowNorm& norm)
      : row_(row), width_(width), norm_(norm) {
    if constexpr (kNormed)
      stats_ = norm_stats<false>([&](auto f) { each_value(f); }, width, norm.kind, norm.eps);
  }

  // f(column, unit): the vectors of this thread, normalised where there is a norm.
  template <class F> __device__ __forceinline__ void each(F f) const {
    each_step<T, kAligned>(width_, [&](int column) { f(column, unit(column)); });
  }

  // Times the weights and plus the biases of the norm.
  __device__ __forceinline__ Vec<float, n> normed(const Vec<float, n>& unit, int column) const {
    if constexpr (!kNormed) return unit;
    Vec<float, n> out = weighted(unit, column);
    if (norm_.bias) {
      const Vec<float, n> biases = load_constant<n, kAligned>(norm_.bias, column, width_);
#pragma unroll
      for (int i = 0; i < n; ++i) out.value[i] += biases.value[i];
    }
    return out;
  }

  __device__ __forceinline__ Vec<float, n> weighted(Vec<float, n> values, int column) const {
    if (!norm_.weight) return values;
    const Vec<float, n> weights = load_constant<n, kAligned>(norm_.weight, column, width_);
#pragma unroll
    for (int i = 0; i < n; ++i) values.value[i] *= weights.value[i];
    return values;
  }

  // Writes the gradient of the row, times a factor and plus `direct` where it is not null: given(column) is that of
  // what `normed` gives. Returns the sum over the row of given * normed, but for the biases.
  template <class Given>
  __device__ __forceinline__ float gradient(Given given, float factor, const T* direct, T* out) const {
    float sums[2] = {0, 0};  // of g = weighted(given), of g * unit
    each([&](int column, const Vec<float, n>& unit) {
      const Vec<float, n> g = weighted(given(column), column);
#pragma unroll
      for (int i = 0; i < n; ++i) sums[0] += g.value[i], sums[1] += g.value[i] * unit.value[i];
    });
    row_sums(sums);
    const float mean_g = norm_.kind == Norm::kLayer ? sums[0] / width_ : 0.0f, mean_gn = sums[1] / width_;
    const float scale = factor * stats_.rstd;
    each([&](int column, const Vec<float, n>& unit) {
      const Vec<float, n> g = weighted(given(column), column);
      Vec<T, n> more{}, rounded;
      if (direct) more = load<n, kAligned>(direct, column, width_);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float exact = scale * (g.value[i] - mean_g - unit.value[i] * mean_gn);
        rounded.value[i] = from_float<T>(exact + upcast(more.value[i]));
      }
      store<n, kAligned>(out, column, width_, rounded);
    });
    return sums[1];
  }

  // This thread's part of the sum of given * bias.
  template <class Given> __device__ __forceinline__ float times_bias(Given given) const {
    float sum = 0;
    if (!norm_.bias) return sum;
    each_step<T, kAligned>(width_, [&](int column) {
      const Vec<float, n> biases = load_constant<n, kAligned>(norm_.bias, column, width_), g = given(column);
#pragma unroll
      for (int i = 0; i < n; ++i) sum += g.value[i] * biases.value[i];
    });
    return sum;
  }

  // For sums over rows.
  __device__ __forceinline__ void leave_stats(float* stats, int64_t t) const {
    if (threadIdx.x == 0) stats[2 * t] = stats_.mean, stats[2 * t + 1] = stats_.rstd;
  }

 private:
  // f(value) for the elements of this thread; the loads of a pass do not wait for each other.
  template <class F> __device__ __forceinline__ void each_value(F f) const {
    each_vector<T, kAligned>(width_, [&](int, int column) {
      const Vec<T, kPerVector<T>> values = load<kPerVector<T>, kAligned>(row_, column, width_);
#pragma unroll
      for (int i = 0; i < kPerVector<T>; ++i)
        if (kAligned || column + i < width_) f(upcast(values.value[i]));
    });
  }

  __device__ __forceinline__ Vec<float, n> unit(int column) const {
    const Vec<T, n> values = load<n, kAligned>(row_, column, width_);
    Vec<float, n> out;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      out.value[i] = upcast(values.value[i]);
      if constexpr (kNormed) out.value[i] = (out.value[i] - stats_.mean) * stats_.rstd;
    }
    return out;
  }

  const T* row_;
  int width_;
  RowNorm norm_;
  Stats stats_{};
};

// The terms of a gate's gradient (column_sums.cuh): of its rows the sum of their gradient times the branch, times the
// branch normalised and of the gradient alone where there is a norm. Of<T> says where a row's gradient is, and what
// else multiplies it.
template <class T, class Of, bool kNormed> struct GateTerms {
  static constexpr int kSums = kNormed ? 2 : 1;
  const T *grad_out, *branch;  // rows of `width`
  int width;
  Of of;
  const float* stats;  // [T, 2], with a norm

  template <int kColumns>
  __device__ __forceinline__ void add(float (&sums)[kSums][kColumns], int64_t r, int64_t t, int column) const {
    const Vec<T, kColumns> grad = load<kColumns, true>(grad_out + of.row(r, t) * width, column, width);
    const Vec<T, kColumns> value = load<kColumns, true>(branch + t * width, column, width);
    const float factor = of.factor(r), mean = kNormed ? stats[2 * t] : 0, rstd = kNormed ? stats[2 * t + 1] : 1;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float g = factor * upcast(grad.value[c]);
      if constexpr (kNormed) {
        sums[0][c] += g * ((upcast(value.value[c]) - mean) * rstd);
        sums[1][c] += g;
      } else {
        sums[0][c] += g * upcast(value.value[c]);
      }
    }
  }
};

}  // namespace diffratio::cuda
