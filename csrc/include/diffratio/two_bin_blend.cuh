// Blend the residual streams of two bins, finish the kept rows and put them into a copy of x.
#pragma once

#include "scatter_rescale.cuh"
#include "two_bin_row.cuh"

namespace diffratio::cuda {

// A finished row is  x X + large H_l + small H_s + score u,  u = gate * branch. With w and v the weights of
// the bins, omega = w + v and s the score:
//   kMlp       (1 - omega) X + w H_l + v H_s + s u        kOutput  (1 - omega) X + s (w H_l + v H_s + u)
//   kResidual  X + s (w H_l + v H_s - omega X + u)        kNone    kMlp with s = 1
struct Blend {
  float x, large, small, score;
};

__device__ __forceinline__ bool blends_after_score(Rescale rescale) {
  return rescale == Rescale::kResidual || rescale == Rescale::kOutput;
}

__device__ __forceinline__ Blend blend_of(Rescale rescale, const BinRow& row, float score) {
  const float of_hidden = blends_after_score(rescale) ? score : 1.0f;
  const float of_x = rescale == Rescale::kResidual ? score : 1.0f, omega = row.in_both() ? 1.0f : row.large;
  const float rest = rescale == Rescale::kResidual ? 1 - of_x * omega : row.in_both() ? 0.0f : 1 - row.large;
  return {rest, of_hidden * row.large, of_hidden * row.small, score};
}

// Else x does not count: a row of both bins is taken out of x in full.
__device__ __forceinline__ bool reads_x(Rescale rescale, const BinRow& row) {
  return rescale == Rescale::kResidual || !row.in_both();
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads, kAligned ? 4 : 1) two_bin_blend_kernel(TwoBinBlendArgs b) {
  constexpr int n = kPerVector<T>;
  const ScatterArgs& a = b.scatter;
  const int64_t r = row_of_thread();
  if (r >= a.rows) return;
  const int64_t t = a.place[r], sample = r / a.tokens;
  const int width = static_cast<int>(a.width);
  const T* x = static_cast<const T*>(a.x) + r * a.width;
  T* out = static_cast<T*>(a.out) + r * a.width;
  if (t < 0) {
    each_column<T>(width, [&](int column) {
      store<n, kAligned>(out, column, width, load<n, kAligned>(x, column, width));
    });
    return;
  }

  const BinRow row = bin_row(b.bins, sample, t);
  const Blend blend = blend_of(a.rescale, row, score(a, r));
  const bool with_x = reads_x(a.rescale, row);
  const T* large = static_cast<const T*>(a.hidden) + t * a.width;
  const T* small = static_cast<const T*>(a.hidden) + row.at * a.width;
  const T* branch = static_cast<const T*>(a.branch) + t * a.width;
  const float* gate = a.gate.values + sample * a.gate.stride;
  each_column<T>(width, [&](int column) {
    const Vec<T, n> larges = load<n, kAligned>(large, column, width);
    const Vec<T, n> branches = load<n, kAligned>(branch, column, width);
    Vec<T, n> olds{}, smalls{}, finished;
    if (with_x) olds = load<n, kAligned>(x, column, width);
    if (row.in_both()) smalls = load<n, kAligned>(small, column, width);
    const Vec<float, n> gates = load_constant<n, kAligned>(gate, column, width);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float stream = blend.large * upcast(larges.value[i]) + blend.small * upcast(smalls.value[i]);
      const float update = blend.score * (gates.value[i] * upcast(branches.value[i]));
      finished.value[i] = from_float<T>(blend.x * upcast(olds.value[i]) + stream + update);
    }
    store<n, kAligned>(out, column, width, finished);
  });
}

}  // namespace diffratio::cuda
