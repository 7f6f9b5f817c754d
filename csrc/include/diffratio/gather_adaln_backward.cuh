// Gradients of gather_adaln.cuh. With g = grad_normed * (1 + scale) and n the normalised row:
// grad_row = grad_rows + rstd * (g - mean(g) - n * mean(g * n)),  grad_shift[b] = sum of grad_normed,
// grad_scale[b] = sum of grad_normed * n. An rms norm has no mean(g).
#pragma once

#include "norm_row.cuh"

namespace diffratio::cuda {

// One row of x with gather (zero where it was not kept), one packed row without.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads, 4) gather_adaln_backward_kernel(AdalnBackwardArgs a) {
  constexpr int n = kStep<T, kAligned>;
  const ColumnSums& sizes = a.columns;
  const int64_t r = row_of_thread();
  if (r >= (a.gather ? sizes.samples * sizes.tokens : a.count)) return;
  const int width = static_cast<int>(sizes.width);
  const int64_t t = a.gather ? sizes.place[r] : r;
  T* grad_x = static_cast<T*>(a.grad_x) + r * sizes.width;
  if (t < 0) {
    const Vec<T, n> zero{};
    each_step<T, kAligned>(width, [&](int column) { store<n, kAligned>(grad_x, column, width, zero); });
    return;
  }

  const T* direct = a.grad_rows ? static_cast<const T*>(a.grad_rows) + t * sizes.width : nullptr;
  const T* grad = static_cast<const T*>(a.grad_normed) + t * sizes.width;
  const float* scale = a.scale.values + owner_of<false>(sizes.groups.of_row, a.index[t], sizes.tokens) * a.scale.stride;
  const NormRow<T, kAligned, true> row(static_cast<const T*>(a.rows) + t * sizes.width, width,
                                       {a.norm, nullptr, nullptr, a.eps});
  row.leave_stats(a.stats, t);
  const auto given = [&](int column) {
    const Vec<T, n> grads = load<n, kAligned>(grad, column, width);
    Vec<float, n> g = load_constant<n, kAligned>(scale, column, width);
#pragma unroll
    for (int i = 0; i < n; ++i) g.value[i] = upcast(grads.value[i]) * (1 + g.value[i]);
    return g;
  };
  row.gradient(given, 1, direct, grad_x);
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
