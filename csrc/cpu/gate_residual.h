// The end of a branch of packed rows: hidden + gate * branch, the branch as it is or normed.
#pragma once

#include "norm.h"

namespace diffratio {
namespace {

template <typename T, bool kNormed>
void gate_residual(const GateArgs& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  for (int64_t t = begin; t < end; ++t) {
    const T* hidden = static_cast<const T*>(a.hidden) + t * a.width;
    const A* gate = static_cast<const A*>(a.gate) + owner(a.groups, a.index[t], a.tokens) * a.width;
    const Branch<T, kNormed> branch(a.branch, t, a.norm, a.width);
    T* out = static_cast<T*>(a.out) + t * a.width;
#pragma omp simd
    for (int64_t d = 0; d < a.width; ++d) store(out + d, load(hidden[d]) + gate[d] * branch.at(d));
  }
}

template <typename T, bool kNormed>
void gate_residual_backward_rows(const GateBackwardArgs& b, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const GateArgs& a = b.forward;
  for (int64_t t = begin; t < end; ++t) {
    const T* grad = static_cast<const T*>(b.grad_out) + t * a.width;
    const A* gate = static_cast<const A*>(a.gate) + owner(a.groups, a.index[t], a.tokens) * a.width;
    T* grad_branch = static_cast<T*>(b.grad_branch) + t * a.width;
    if (kNormed) {
      const Branch<T, true> branch(a.branch, t, a.norm, a.width);
      branch.backward([&](int64_t d) { return gate[d] * load(grad[d]); }, a.norm.kind, a.width, grad_branch);
      static_cast<A*>(b.sums.stats)[2 * t] = branch.stats.mean;
      static_cast<A*>(b.sums.stats)[2 * t + 1] = branch.stats.rstd;
      continue;
    }
#pragma omp simd
    for (int64_t d = 0; d < a.width; ++d) store(grad_branch + d, gate[d] * load(grad[d]));
  }
}

// The sums of the gate for the columns [begin, end), rows in order.
template <typename T, bool kNormed>
void gate_residual_backward_columns(const GateBackwardArgs& b, int64_t begin, int64_t end) {
  const GateArgs& a = b.forward;
  for (int64_t t = 0; t < b.count; ++t) {
    const T* grad = static_cast<const T*>(b.grad_out) + t * a.width;
    add_to_sums<T, kNormed>(b.sums, a.branch, t, owner(a.groups, a.index[t], a.tokens), a.width,
                            [&](int64_t d) { return load(grad[d]); }, begin, end);
  }
}

}  // namespace
}  // namespace diffratio
