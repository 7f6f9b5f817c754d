// Gradients of scatter_rescale.cuh.
#pragma once

#include "scatter_rescale.cuh"

namespace diffratio::cuda {

// One row of x: its own gradient, and those of its hidden, branch and logit if it was kept.
template <class T, Rescale mode, bool kAligned, bool kPlain>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    scatter_rescale_backward_kernel(ScatterBackwardArgs b, ScatterMore more) {
  using F = Finish<mode>;
  constexpr int n = kPerVector<T>;
  const ScatterArgs& a = b.forward;
  const int64_t r = row_of_thread();
  if (r >= a.rows) return;
  const int64_t t = a.place[r];
  const int width = static_cast<int>(a.width);
  T* grad_x = static_cast<T*>(b.grad_x) + r * a.width;
  const Row<T, kAligned> grad(static_cast<const T*>(b.grad_out) + r * a.width, width);
  if (t < 0) {
    each_vector<T, kAligned>(
        width, [&](int v, int column) { store<n, kAligned>(grad_x, column, width, grad.at(v, column)); });
    if (threadIdx.x == 0) b.grad_logits[r] = 0;
    return;
  }

  const Row<T, kAligned> x(static_cast<const T*>(a.x) + r * a.width, F::reads_x ? width : 0);
  const Row<T, kAligned> hidden(static_cast<const T*>(a.hidden) + t * a.width, width);
  const Row<T, kAligned> branch(static_cast<const T*>(a.branch) + t * a.width, width);
  T* grad_hidden = static_cast<T*>(b.grad_hidden) + t * a.width;
  T* grad_branch = static_cast<T*>(b.grad_branch) + t * a.width;
  const float* gate = a.gate.values + owner_of<kPlain>(more.groups, r, a.tokens) * a.gate.stride;
  const float factor = score(a, r), hidden_weight = F::hidden_in_base ? 1.0f : factor;

  [[maybe_unused]] Stats stats;
  if constexpr (!kPlain) {
    stats = norm_stats<false>(branch, width, more.norm.kind, more.norm.eps);
    if (threadIdx.x == 0 && more.stats) more.stats[2 * t] = stats.mean, more.stats[2 * t + 1] = stats.rstd;
  }
  // of the score; then of g, the gradient of the branch normalised, and of g * the branch normalised
  float grad_score[kPlain ? 1 : 3] = {};
  each_vector<T, kAligned>(width, [&](int v, int column) {
    const Vec<T, n> grads = grad.at(v, column), hiddens = hidden.at(v, column), branches = branch.at(v, column);
    const Vec<float, n> gates = load_constant<n, kAligned>(gate, column, width);
    Vec<T, n> kept{}, to_x, to_hidden, to_branch;
    [[maybe_unused]] NormedBranch<n> normed;
    if constexpr (!kPlain) normed = NormedBranch<n>::template load<kAligned>(more.norm, column, width);
    if constexpr (F::reads_x) kept = x.at(v, column);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const float g = upcast(grads.value[j]);
      float value = upcast(branches.value[j]);
      if constexpr (!kPlain) {
        const float unit = (value - stats.mean) * stats.rstd;
        const float to_unit = factor * gates.value[j] * g * normed.weight.value[j];
        value = normed.at(j, unit);
        grad_score[1] += to_unit;
        grad_score[2] += to_unit * unit;
      }
      const float u = gates.value[j] * value;
      grad_score[0] += g * F::delta(upcast(kept.value[j]), upcast(hiddens.value[j]), u);
      to_x.value[j] = from_float<T>(F::reads_x ? (1 - factor) * g : 0.0f);
      to_hidden.value[j] = from_float<T>(hidden_weight * g);
      to_branch.value[j] = from_float<T>(factor * gates.value[j] * g);
    }
    store<n, kAligned>(grad_x, column, width, to_x);
    store<n, kAligned>(grad_hidden, column, width, to_hidden);
    if constexpr (kPlain) store<n, kAligned>(grad_branch, column, width, to_branch);
  });
  row_sums(grad_score);
  if (threadIdx.x == 0)
    b.grad_logits[r] = a.rescale == Rescale::kNone ? 0 : grad_score[0] * factor * (1 - sigmoid(a.logits[r]));
  if constexpr (!kPlain) {
    const bool layer = more.norm.kind == Norm::kLayer, none = more.norm.kind == Norm::kNone;
    const float mean_g = layer ? grad_score[1] / width : 0.0f, mean_gn = none ? 0.0f : grad_score[2] / width;
    each_vector<T, kAligned>(width, [&](int v, int column) {
      const Vec<T, n> grads = grad.at(v, column), branches = branch.at(v, column);
      const Vec<float, n> gates = load_constant<n, kAligned>(gate, column, width);
      const NormedBranch<n> normed = NormedBranch<n>::template load<kAligned>(more.norm, column, width);
      Vec<T, n> to_branch;
#pragma unroll
      for (int j = 0; j < n; ++j) {
        const float g = factor * gates.value[j] * upcast(grads.value[j]) * normed.weight.value[j];
        const float unit = (upcast(branches.value[j]) - stats.mean) * stats.rstd;
        to_branch.value[j] = from_float<T>(none ? g : stats.rstd * (g - mean_g - unit * mean_gn));
      }
      store<n, kAligned>(grad_branch, column, width, to_branch);
    });
  }
}

// The terms of grad_gate (column_sums.cuh).
template <class T> struct GateTerms {
  static constexpr int kSums = 1;
  const T *grad_out, *branch;  // [B*N, D], [T, D]
  ScatterArgs forward;

  template <int kColumns>
  __device__ __forceinline__ void add(float (&sums)[kSums][kColumns], int64_t r, int64_t t, int column) const {
    const int64_t width = forward.width;
    const Vec<T, kColumns> grad = load<kColumns, true>(grad_out + r * width, column, width);
    const Vec<T, kColumns> value = load<kColumns, true>(branch + t * width, column, width);
    const float factor = score(forward, r);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sums[0][c] += factor * upcast(value.value[c]) * upcast(grad.value[c]);
  }
};

// The same where the branch is normed: sums of its rows' gradients times the branch normalised, and of them alone.
template <class T> struct NormedGateTerms {
  static constexpr int kSums = 2;
  const T *grad_out, *branch;  // [B*N, D], [T, D]
  ScatterArgs forward;
  const float* stats;  // [T, 2]

  template <int kColumns>
  __device__ __forceinline__ void add(float (&sums)[kSums][kColumns], int64_t r, int64_t t, int column) const {
    const int64_t width = forward.width;
    const Vec<T, kColumns> grad = load<kColumns, true>(grad_out + r * width, column, width);
    const Vec<T, kColumns> value = load<kColumns, true>(branch + t * width, column, width);
    const float factor = score(forward, r), mean = stats[2 * t], rstd = stats[2 * t + 1];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      sums[0][c] += factor * upcast(grad.value[c]) * ((upcast(value.value[c]) - mean) * rstd);
      sums[1][c] += factor * upcast(grad.value[c]);
    }
  }
};

}  // namespace diffratio::cuda
