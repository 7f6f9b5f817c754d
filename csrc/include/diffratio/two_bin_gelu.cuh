// The blend of two bins' GELUs (tanh), w gelu(large) + (1 - w) gelu(small), and its gradients.
#pragma once

#include "activation.cuh"
#include "two_bin_row.cuh"

namespace diffratio::cuda {

template <class T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads) two_bin_gelu_kernel(TwoBinGeluArgs a) {
  constexpr int n = kPerVector<T>;
  const int64_t t = row_of_thread();
  if (t >= a.bins.rows) return;
  const int width = static_cast<int>(a.width);
  const BinRow row = bin_row(a.bins, sample_of(a.bins.cu_seqlens_large, a.bins.samples, t), t);
  const T* large = static_cast<const T*>(a.pre) + t * a.width;
  const T* small = static_cast<const T*>(a.pre) + row.at * a.width;
  T* inner = static_cast<T*>(a.inner) + t * a.width;

  each_column<T>(width, [&](int column) {
    const Vec<T, n> larges = load<n, kAligned>(large, column, width);
    Vec<T, n> smalls{}, out;
    if (row.in_both()) smalls = load<n, kAligned>(small, column, width);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      float sum = row.large * gelu(upcast(larges.value[i])).value;
      if (row.in_both()) sum += row.small * gelu(upcast(smalls.value[i])).value;
      out.value[i] = from_float<T>(sum);
    }
    store<n, kAligned>(inner, column, width, out);
  });
}

// weight_dots[t] = grad . (gelu(large) - gelu(small)): what packed row t gives to the gradient of w.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads, 4) two_bin_gelu_backward_kernel(TwoBinGeluBackwardArgs a) {
  constexpr int n = kStep<T, kAligned>;
  const int64_t t = row_of_thread();
  if (t >= a.bins.rows) return;
  const int width = static_cast<int>(a.width);
  const BinRow row = bin_row(a.bins, sample_of(a.bins.cu_seqlens_large, a.bins.samples, t), t);
  const T* grad = static_cast<const T*>(a.grad) + t * a.width;
  const T* large = static_cast<const T*>(a.pre) + t * a.width;
  const T* small = static_cast<const T*>(a.pre) + row.at * a.width;
  T* grad_large = static_cast<T*>(a.grad_pre) + t * a.width;
  T* grad_small = static_cast<T*>(a.grad_pre) + row.at * a.width;

  float dot[1] = {0};
  each_column<T>(width, [&](int vector) {
    float part = 0;  // a sum of sums rounds less
    each_part<T, kAligned>(vector, [&](int column) {
      const Vec<T, n> grads = load<n, kAligned>(grad, column, width);
      const Vec<T, n> larges = load<n, kAligned>(large, column, width);
      Vec<T, n> smalls{}, to_large, to_small;
      if (row.in_both()) smalls = load<n, kAligned>(small, column, width);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float g = upcast(grads.value[i]);
        const Activated of_large = gelu(upcast(larges.value[i]));
        float difference = of_large.value;
        to_large.value[i] = from_float<T>(row.large * g * of_large.slope);
        if (row.in_both()) {
          const Activated of_small = gelu(upcast(smalls.value[i]));
          difference -= of_small.value;
          to_small.value[i] = from_float<T>(row.small * g * of_small.slope);
        }
        part += g * difference;
      }
      store<n, kAligned>(grad_large, column, width, to_large);
      if (row.in_both()) store<n, kAligned>(grad_small, column, width, to_small);
    });
    dot[0] += part;
  });
  row_sums(dot);
  if (threadIdx.x == 0) a.weight_dots[t] = dot[0];
}

}  // namespace diffratio::cuda
