// Finish the kept rows (residual + gated branch, rescaled by the router score) and scatter them into a copy of x.
#pragma once

#include "arguments.h"
#include "row.cuh"

namespace diffratio::cuda {

// A finished row is  base + factor * delta,  with u = gate * branch and s the score:
//   kMlp  h + s u      kResidual  x + s (h - x + u)      kOutput  0 + s (h + u)      kNone  kMlp with s = 1
template <Rescale mode> struct Finish {
  static constexpr bool reads_x = mode == Rescale::kResidual;
  static constexpr bool hidden_in_base = mode == Rescale::kMlp;

  __device__ __forceinline__ static float base(float x, float h) {
    return reads_x ? x : hidden_in_base ? h : 0.0f;
  }
  __device__ __forceinline__ static float delta(float x, float h, float u) {
    return reads_x ? (h - x) + u : hidden_in_base ? u : h + u;
  }
};

__device__ __forceinline__ float sigmoid(float logit) { return 1 / (1 + expf(-logit)); }

// The factor of row r.
__device__ __forceinline__ float score(const ScatterArgs& a, int64_t r) {
  return a.rescale == Rescale::kNone ? 1.0f : a.score_scale * sigmoid(a.logits[r]);
}

// What the gate multiplies, of a branch's value with statistics of its row; n is the value normalised.
template <int n>
struct NormedBranch {
  Vec<float, n> weight, bias;

  template <bool kAligned>
  static __device__ __forceinline__ NormedBranch load(const BranchNorm& norm, int column, int width) {
    NormedBranch out{};
#pragma unroll
    for (int i = 0; i < n; ++i) out.weight.value[i] = 1;
    if (norm.weight) out.weight = load_constant<n, kAligned>(norm.weight, column, width);
    if (norm.bias) out.bias = load_constant<n, kAligned>(norm.bias, column, width);
    return out;
  }
  __device__ __forceinline__ float at(int i, float unit) const { return unit * weight.value[i] + bias.value[i]; }
};

// All rows of x with place (rows that are not kept are copied), the rows of index only without.
// kPlain: nothing more.
template <class T, Rescale mode, bool kAligned, bool kPlain>
__global__ void __launch_bounds__(kMaxRowThreads, 1) scatter_rescale_kernel(ScatterArgs a, ScatterMore more) {
  using F = Finish<mode>;
  constexpr int n = kPerVector<T>;
  const int64_t i = row_of_thread();
  if (i >= a.rows) return;
  const int64_t r = a.place ? i : a.index[i], t = a.place ? a.place[i] : i;
  const int width = static_cast<int>(a.width);
  T* out = static_cast<T*>(a.out) + r * a.width;

  const Row<T, kAligned> x(static_cast<const T*>(a.x) + r * a.width, F::reads_x || t < 0 ? width : 0);
  if (t < 0) {
    each_vector<T, kAligned>(
        width, [&](int v, int column) { store<n, kAligned>(out, column, width, x.at(v, column)); });
    return;
  }
  const Row<T, kAligned> hidden(static_cast<const T*>(a.hidden) + t * a.width, width);
  const Row<T, kAligned> branch(static_cast<const T*>(a.branch) + t * a.width, width);
  const float* gate = a.gate.values + owner_of<kPlain>(more.groups, r, a.tokens) * a.gate.stride;
  const float factor = score(a, r);
  [[maybe_unused]] Stats stats;
  if constexpr (!kPlain) stats = norm_stats<false>(branch, width, more.norm.kind, more.norm.eps);
  each_vector<T, kAligned>(width, [&](int v, int column) {
    const Vec<T, n> hiddens = hidden.at(v, column), branches = branch.at(v, column);
    const Vec<float, n> gates = load_constant<n, kAligned>(gate, column, width);
    Vec<T, n> kept{}, finished;
    [[maybe_unused]] NormedBranch<n> normed;
    if constexpr (!kPlain) normed = NormedBranch<n>::template load<kAligned>(more.norm, column, width);
    if constexpr (F::reads_x) kept = x.at(v, column);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      float value = upcast(branches.value[j]);
      if constexpr (!kPlain) value = normed.at(j, (value - stats.mean) * stats.rstd);
      const float h = upcast(hiddens.value[j]), u = gates.value[j] * value;
      const float old = upcast(kept.value[j]);
      finished.value[j] = from_float<T>(F::base(old, h) + factor * F::delta(old, h, u));
    }
    store<n, kAligned>(out, column, width, finished);
  });
}

}  // namespace diffratio::cuda
