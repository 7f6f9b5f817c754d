// Gradients of two_bin_blend.cuh.
#pragma once

#include "two_bin_blend.cuh"

namespace diffratio::cuda {

// One row of x: its own gradient, and if it was kept, those of its hidden rows, branch and logit, and what it
// gives to that of w: weight_dots[t] = g . (hidden (H_l - H_s) - x X), without x where v makes up for w.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads, 3)
    two_bin_blend_backward_kernel(TwoBinBlendBackwardArgs b) {
  constexpr int n = kStep<T, kAligned>;
  const ScatterArgs& a = b.forward.scatter;
  const int64_t r = row_of_thread();
  if (r >= a.rows) return;
  const int64_t t = a.place[r], sample = sample_of_row(r, a.tokens);
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

  const BinRow row = bin_row(b.forward.bins, sample, t);
  const Blend blend = blend_of(a.rescale, score(a, r), 1), by_score = blend_of(a.rescale, 1, 0);
  const bool with_x = reads_x(a.rescale, row);
  const T* x = static_cast<const T*>(a.x) + r * a.width;
  const T* large = static_cast<const T*>(a.hidden) + t * a.width;
  const T* small = static_cast<const T*>(a.hidden) + row.at * a.width;
  const T* branch = static_cast<const T*>(a.branch) + t * a.width;
  const float* gate = a.gate.values + sample * a.gate.stride;
  T* grad_large = static_cast<T*>(b.grad_hidden) + t * a.width;
  T* grad_small = static_cast<T*>(b.grad_hidden) + row.at * a.width;
  T* grad_branch = static_cast<T*>(b.grad_branch) + t * a.width;
  const float of_x = 1 - blend.x * row.omega(), x_of_weight = row.in_both() ? 0.0f : blend.x;
  const float of_large = blend.hidden * row.large, of_small = blend.hidden * row.small;
  const float x_of_score = by_score.x * row.omega();

  float dots[2] = {0, 0};  // of w, of the score
  each_column<T>(width, [&](int vector) {
    float parts[2] = {0, 0};  // a sum of sums rounds less
    each_part<T, kAligned>(vector, [&](int column) {
      const Vec<T, n> grads = load<n, kAligned>(grad, column, width);
      const Vec<T, n> larges = load<n, kAligned>(large, column, width);
      const Vec<T, n> branches = load<n, kAligned>(branch, column, width);
      Vec<T, n> olds{}, smalls{}, to_x, to_large, to_small, to_branch;
      if (with_x) olds = load<n, kAligned>(x, column, width);
      if (row.in_both()) smalls = load<n, kAligned>(small, column, width);
      const Vec<float, n> gates = load_constant<n, kAligned>(gate, column, width);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float g = upcast(grads.value[i]), old = upcast(olds.value[i]);
        const float h = upcast(larges.value[i]), other = upcast(smalls.value[i]);
        const float stream = row.large * h + row.small * other;
        const float update = gates.value[i] * upcast(branches.value[i]);
        parts[0] += g * (blend.hidden * (h - other) - x_of_weight * old);
        parts[1] += g * (by_score.hidden * stream - x_of_score * old + update);
        to_x.value[i] = from_float<T>(of_x * g);
        to_large.value[i] = from_float<T>(of_large * g);
        to_small.value[i] = from_float<T>(of_small * g);
        to_branch.value[i] = from_float<T>(blend.update * gates.value[i] * g);
      }
      store<n, kAligned>(grad_x, column, width, to_x);
      store<n, kAligned>(grad_large, column, width, to_large);
      if (row.in_both()) store<n, kAligned>(grad_small, column, width, to_small);
      store<n, kAligned>(grad_branch, column, width, to_branch);
    });
    dots[0] += parts[0];
    dots[1] += parts[1];
  });
  row_sums(dots);
  if (threadIdx.x != 0) return;
  b.weight_dots[t] = dots[0];
  b.grad_logits[r] = a.rescale == Rescale::kNone ? 0 : dots[1] * blend.update * (1 - sigmoid(a.logits[r]));
}

}  // namespace diffratio::cuda
