// logits[r] = x[r] . weight (+ bias).
#pragma once

#include "arguments.h"
#include "row.cuh"

namespace diffratio::cuda {

constexpr int kLogitThreads = 128;

// A warp has kRows rows, so that a weight is read once for all of them. A row's sum does not depend on kRows.
template <class T, bool kAligned, int kRows>
__global__ void __launch_bounds__(kLogitThreads) router_logits_kernel(RouterLogitsArgs a) {
  constexpr int n = kPerVector<T>;
  const int64_t first = row_of_thread() * kRows;
  if (first >= a.rows) return;
  const int width = static_cast<int>(a.width);
  const T* row[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    row[r] = static_cast<const T*>(a.x) + min(first + r, a.rows - 1) * a.width;

  float sum[kRows] = {};
#pragma unroll(kRows == 1 ? kHeld : 2)
  for (int column = threadIdx.x * n; column < width; column += kWarp * n) {
    const Vec<float, n> weight = load_constant<n, kAligned>(a.weight, column, width);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Vec<T, n> values = load<n, kAligned>(row[r], column, width);
#pragma unroll
      for (int i = 0; i < n; ++i) sum[r] += upcast(values.value[i]) * weight.value[i];
    }
  }

  const float bias = a.bias ? *a.bias : 0.0f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sum[r] = warp_sum(sum[r]);
    if (threadIdx.x == 0 && first + r < a.rows) a.logits[first + r] = sum[r] + bias;
  }
}

}  // namespace diffratio::cuda
