// Gradients of gate_residual.cuh; that of hidden is grad_out.
#pragma once

#include "norm_row.cuh"

namespace diffratio::cuda {

// One packed row: the gradient of its branch.
template <class T, bool kAligned, bool kNormed>
__global__ void __launch_bounds__(kMaxRowThreads, 4) gate_residual_backward_kernel(GateResidualBackwardArgs b) {
  constexpr int n = kStep<T, kAligned>;
  const GateResidualArgs& a = b.forward;
  const int64_t t = row_of_thread();
  if (t >= a.count) return;
  const int width = static_cast<int>(a.width);
  const T* grad = static_cast<const T*>(b.grad_out) + t * a.width;
  const float* gate = a.gate.values + owner_of<false>(a.groups, a.index[t], a.tokens) * a.gate.stride;
  T* grad_branch = static_cast<T*>(b.grad_branch) + t * a.width;
  const auto gated = [&](int column) {
    const Vec<T, n> grads = load<n, kAligned>(grad, column, width);
    Vec<float, n> out = load_constant<n, kAligned>(gate, column, width);
#pragma unroll
    for (int i = 0; i < n; ++i) out.value[i] *= upcast(grads.value[i]);
    return out;
  };
  if constexpr (!kNormed) {
    each_step<T, kAligned>(width, [&](int column) {
      const Vec<float, n> exact = gated(column);
      Vec<T, n> rounded;
#pragma unroll
      for (int i = 0; i < n; ++i) rounded.value[i] = from_float<T>(exact.value[i]);
      store<n, kAligned>(grad_branch, column, width, rounded);
    });
  } else {
    const NormRow<T, kAligned, true> branch(static_cast<const T*>(a.branch) + t * a.width, width, a.norm);
    branch.leave_stats(b.stats, t);
    branch.gradient(gated, 1, nullptr, grad_branch);
  }
}

// Gradients are those of packed rows.
struct OfPackedRows {
  __device__ __forceinline__ int64_t row(int64_t, int64_t t) const { return t; }
  __device__ __forceinline__ float factor(int64_t) const { return 1; }
};

}  // namespace diffratio::cuda
