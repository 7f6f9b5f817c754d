// Finish the kept rows (residual + gated branch, rescaled by the router score) and scatter them into a copy of x.
#pragma once

#include "norm_row.cuh"

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

// All rows of x with place (rows that are not kept are copied), the rows of index only without.
template <class T, Rescale mode, bool kAligned, bool kNormed>
__global__ void __launch_bounds__(kMaxRowThreads, 4) scatter_rescale_kernel(ScatterArgs a, ScatterMore more) {
  using F = Finish<mode>;
  constexpr int n = kStep<T, kAligned>;
  const int64_t i = row_of_thread();
  if (i >= a.rows) return;
  const int64_t r = a.place ? i : a.index[i], t = a.place ? a.place[i] : i;
  const int width = static_cast<int>(a.width);
  const T* x = static_cast<const T*>(a.x) + r * a.width;
  T* out = static_cast<T*>(a.out) + r * a.width;
  if (t < 0) {
    each_step<T, kAligned>(width, [&](int column) {
      store<n, kAligned>(out, column, width, load<n, kAligned>(x, column, width));
    });
    return;
  }

  const NormRow<T, kAligned, kNormed> branch(static_cast<const T*>(a.branch) + t * a.width, width, more.norm);
  const T* hidden = static_cast<const T*>(a.hidden) + t * a.width;
  const float* gate = a.gate.values + owner_of<false>(more.groups, r, a.tokens) * a.gate.stride;
  const float factor = score(a, r);
  branch.each([&](int column, const Vec<float, n>& unit) {
    const Vec<T, n> hiddens = load<n, kAligned>(hidden, column, width);
    const Vec<float, n> gates = load_constant<n, kAligned>(gate, column, width);
    const Vec<float, n> values = branch.normed(unit, column);
    Vec<T, n> kept{}, finished;
    if constexpr (F::reads_x) kept = load<n, kAligned>(x, column, width);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const float old = upcast(kept.value[j]), h = upcast(hiddens.value[j]), u = gates.value[j] * values.value[j];
      finished.value[j] = from_float<T>(F::base(old, h) + factor * F::delta(old, h, u));
    }
    store<n, kAligned>(out, column, width, finished);
  });
}

}  // namespace diffratio::cuda
