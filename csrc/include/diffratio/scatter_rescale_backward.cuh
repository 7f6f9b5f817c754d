// Gradients of scatter_rescale.cuh.
#pragma once

#include "scatter_rescale.cuh"

namespace diffratio::cuda {

// One row of x: its own gradient, and those of its hidden, branch and logit if it was kept.
template <class T, Rescale mode, bool kAligned, bool kNormed>
__global__ void __launch_bounds__(kMaxRowThreads, 4)
    scatter_rescale_backward_kernel(ScatterBackwardArgs b, ScatterMore more) {
  using F = Finish<mode>;
  constexpr int n = kStep<T, kAligned>;
  const ScatterArgs& a = b.forward;
  const int64_t r = row_of_thread();
  if (r >= a.rows) return;
  const int64_t t = a.place[r];
  const int width = static_cast<int>(a.width);
  const T* grad = static_cast<const T*>(b.grad_out) + r * a.width;
  T* grad_x = static_cast<T*>(b.grad_x) + r * a.width;
  if (t < 0) {
    each_step<T, kAligned>(width, [&](int column) {
      store<n, kAligned>(grad_x, column, width, load<n, kAligned>(grad, column, width));
    });
    if (threadIdx.x == 0) b.grad_logits[r] = 0;
    return;
  }

  const NormRow<T, kAligned, kNormed> branch(static_cast<const T*>(a.branch) + t * a.width, width, more.norm);
  if constexpr (kNormed) branch.leave_stats(more.stats, t);
  const T* x = static_cast<const T*>(a.x) + r * a.width;
  const T* hidden = static_cast<const T*>(a.hidden) + t * a.width;
  T* grad_hidden = static_cast<T*>(b.grad_hidden) + t * a.width;
  T* grad_branch = static_cast<T*>(b.grad_branch) + t * a.width;
  const float* gate = a.gate.values + owner_of<false>(more.groups, r, a.tokens) * a.gate.stride;
  const float factor = score(a, r), hidden_weight = F::hidden_in_base ? 1.0f : factor;

  float grad_score[1] = {0};
  const auto streams = [&](int column, const Vec<T, n>& grads) {
    const Vec<T, n> hiddens = load<n, kAligned>(hidden, column, width);
    Vec<T, n> kept{}, to_x, to_hidden;
    if constexpr (F::reads_x) kept = load<n, kAligned>(x, column, width);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const float g = upcast(grads.value[j]);
      grad_score[0] += g * F::delta(upcast(kept.value[j]), upcast(hiddens.value[j]), 0);
      to_x.value[j] = from_float<T>(F::reads_x ? (1 - factor) * g : 0.0f);
      to_hidden.value[j] = from_float<T>(hidden_weight * g);
    }
    store<n, kAligned>(grad_x, column, width, to_x);
    store<n, kAligned>(grad_hidden, column, width, to_hidden);
  };
  const auto gated = [&](const Vec<T, n>& grads, int column) {
    Vec<float, n> out = load_constant<n, kAligned>(gate, column, width);
#pragma unroll
    for (int j = 0; j < n; ++j) out.value[j] *= upcast(grads.value[j]);
    return out;
  };
  if constexpr (kNormed) {
    each_step<T, kAligned>(width, [&](int column) { streams(column, load<n, kAligned>(grad, column, width)); });
    const auto given = [&](int column) { return gated(load<n, kAligned>(grad, column, width), column); };
    grad_score[0] += branch.times_bias(given);
    row_sums(grad_score);
    grad_score[0] += branch.gradient(given, factor, nullptr, grad_branch);
  } else {
    branch.each([&](int column, const Vec<float, n>& values) {
      const Vec<T, n> grads = load<n, kAligned>(grad, column, width);
      const Vec<float, n> g = gated(grads, column);
      Vec<T, n> to_branch;
      streams(column, grads);
#pragma unroll
      for (int j = 0; j < n; ++j) {
        grad_score[0] += g.value[j] * values.value[j];
        to_branch.value[j] = from_float<T>(factor * g.value[j]);
      }
      store<n, kAligned>(grad_branch, column, width, to_branch);
    });
    row_sums(grad_score);
  }
  if (threadIdx.x == 0)
    b.grad_logits[r] = a.rescale == Rescale::kNone ? 0 : grad_score[0] * factor * (1 - sigmoid(a.logits[r]));
}

// Gradients are those of rows of x, times their scores.
struct OfScattered {
  ScatterArgs forward;

  __device__ __forceinline__ int64_t row(int64_t r, int64_t) const { return r; }
  __device__ __forceinline__ float factor(int64_t r) const { return score(forward, r); }
};

}  // namespace diffratio::cuda
