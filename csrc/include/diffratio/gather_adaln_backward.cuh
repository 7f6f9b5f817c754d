// Gradients of gather_adaln.cuh. With g = grad_normed * (1 + scale) and n the normalised row:
// grad_row = grad_rows + rstd * (g - mean(g) - n * mean(g * n)),  grad_shift[b] = sum of grad_normed,
// grad_scale[b] = sum of grad_normed * n. An rms norm has no mean(g).
#pragma once

#include "arguments.h"
#include "row.cuh"

namespace diffratio::cuda {

// One row of x with gather (zero where it was not kept), one packed row without.
template <class T, bool kAligned, bool kPlain>
__global__ void __launch_bounds__(kMaxRowThreads, 1) gather_adaln_backward_kernel(AdalnBackwardArgs a) {
  constexpr int n = kPerVector<T>;
  const ColumnSums& sizes = a.columns;
  const int64_t r = row_of_thread();
  if (r >= (a.gather ? sizes.samples * sizes.tokens : a.count)) return;
  const int width = static_cast<int>(sizes.width);
  const int64_t t = a.gather ? sizes.place[r] : r;
  T* grad_x = static_cast<T*>(a.grad_x) + r * sizes.width;
  if (t < 0) {
    const Vec<T, n> zero{};
    each_vector<T, kAligned>(width, [&](int, int column) { store<n, kAligned>(grad_x, column, width, zero); });
    return;
  }

  const Row<T, kAligned> row(static_cast<const T*>(a.rows) + t * sizes.width, width);
  const Row<T, kAligned> grad(static_cast<const T*>(a.grad_normed) + t * sizes.width, width);
  const Row<T, kAligned> direct(static_cast<const T*>(a.grad_rows) + t * sizes.width, a.grad_rows ? width : 0);
  const int64_t owner = owner_of<kPlain>(sizes.groups.of_row, a.index[t], sizes.tokens);
  const float* scale = a.scale.values + owner * a.scale.stride;

  const Stats stats = norm_stats<kPlain>(row, width, a.norm, a.eps);
  if (threadIdx.x == 0) a.stats[2 * t] = stats.mean, a.stats[2 * t + 1] = stats.rstd;

  float sums[2] = {0, 0};  // of g, of g * n
  each_vector<T, kAligned>(width, [&](int v, int column) {
    const Vec<T, n> values = row.at(v, column), grads = grad.at(v, column);
    const Vec<float, n> factor = load_constant<n, kAligned>(scale, column, width);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float g = upcast(grads.value[i]) * (1 + factor.value[i]);
      sums[0] += g;
      sums[1] += g * ((upcast(values.value[i]) - stats.mean) * stats.rstd);
    }
  });
  row_sums(sums);
  const float mean_g = kPlain || a.norm == Norm::kLayer ? sums[0] / width : 0.0f, mean_gn = sums[1] / width;

  each_vector<T, kAligned>(width, [&](int v, int column) {
    const Vec<T, n> values = row.at(v, column), grads = grad.at(v, column);
    const Vec<float, n> factor = load_constant<n, kAligned>(scale, column, width);
    Vec<T, n> add{}, out;
    if (a.grad_rows) add = direct.at(v, column);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float g = upcast(grads.value[i]) * (1 + factor.value[i]);
      const float unit = (upcast(values.value[i]) - stats.mean) * stats.rstd;
      out.value[i] = from_float<T>(stats.rstd * (g - mean_g - unit * mean_gn) + upcast(add.value[i]));
    }
    store<n, kAligned>(grad_x, column, width, out);
  });
}

// The terms of grad_shift and grad_scale (column_sums.cuh).
template <class T> struct AdalnTerms {
  static constexpr int kSums = 2;
  const T *rows, *grad_normed;  // [T, D]
  const float* stats;           // [T, 2]
  int64_t width;

  template <int kColumns>
  __device__ __forceinline__ void add(float (&sums)[kSums][kColumns], int64_t, int64_t t, int column) const {
    const Vec<T, kColumns> row = load<kColumns, true>(rows + t * width, column, width);
    const Vec<T, kColumns> grad = load<kColumns, true>(grad_normed + t * width, column, width);
    const float mean = stats[2 * t], rstd = stats[2 * t + 1];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      sums[0][c] += upcast(grad.value[c]);
      sums[1][c] += upcast(grad.value[c]) * ((upcast(row.value[c]) - mean) * rstd);
    }
  }
};

}  // namespace diffratio::cuda
