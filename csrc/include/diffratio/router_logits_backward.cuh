// Gradients of router_logits.cuh: grad_x[r] = grad_logits[r] * weight, grad_weight = sum of grad_logits[r] * x[r].
#pragma once

#include "arguments.h"
#include "row.cuh"

namespace diffratio::cuda {

template <class T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads) router_logits_backward_kernel(RouterLogitsBackwardArgs a) {
  constexpr int n = kPerVector<T>;
  const int64_t r = row_of_thread();
  if (r >= a.columns.tokens) return;
  const int width = static_cast<int>(a.columns.width);
  const float grad = a.grad_logits[r];
  T* grad_x = static_cast<T*>(a.grad_x) + r * a.columns.width;
  each_vector<T, kAligned>(width, [&](int, int column) {
    const Vec<float, n> weight = load_constant<n, kAligned>(a.weight, column, width);
    Vec<T, n> out;
#pragma unroll
    for (int i = 0; i < n; ++i) out.value[i] = from_float<T>(grad * weight.value[i]);
    store<n, kAligned>(grad_x, column, width, out);
  });
}

// The terms of grad_weight (column_sums.cuh).
template <class T> struct RouterTerms {
  static constexpr int kSums = 1;
  const T* x;                // [rows, D]
  const float* grad_logits;  // [rows]
  int64_t width;

  template <int kColumns>
  __device__ __forceinline__ void add(float (&sums)[kSums][kColumns], int64_t r, int64_t, int column) const {
    const Vec<T, kColumns> values = load<kColumns, true>(x + r * width, column, width);
    const float grad = grad_logits[r];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sums[0][c] += grad * upcast(values.value[c]);
  }
};

}  // namespace diffratio::cuda
