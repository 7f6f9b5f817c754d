// The end of a branch: hidden + gate * branch for packed rows.
#pragma once

#include "norm_row.cuh"

namespace diffratio::cuda {

template <class T, bool kAligned, bool kNormed>
__global__ void __launch_bounds__(kMaxRowThreads, 4) gate_residual_kernel(GateResidualArgs a) {
  constexpr int n = kStep<T, kAligned>;
  const int64_t t = row_of_thread();
  if (t >= a.count) return;
  const int width = static_cast<int>(a.width);
  const NormRow<T, kAligned, kNormed> branch(static_cast<const T*>(a.branch) + t * a.width, width, a.norm);
  const T* hidden = static_cast<const T*>(a.hidden) + t * a.width;
  const float* gate = a.gate.values + owner_of<false>(a.groups, a.index[t], a.tokens) * a.gate.stride;
  T* out = static_cast<T*>(a.out) + t * a.width;
  branch.each([&](int column, const Vec<float, n>& unit) {
    const Vec<T, n> hiddens = load<n, kAligned>(hidden, column, width);
    const Vec<float, n> gates = load_constant<n, kAligned>(gate, column, width);
    const Vec<float, n> values = branch.normed(unit, column);
    Vec<T, n> sums;
#pragma unroll
    for (int i = 0; i < n; ++i)
      sums.value[i] = from_float<T>(upcast(hiddens.value[i]) + gates.value[i] * values.value[i]);
    store<n, kAligned>(out, column, width, sums);
  });
}

}  // namespace diffratio::cuda
