// Blend the residual streams of two bins, finish the kept rows and put them into a copy of x.
#pragma once

#include "scatter_rescale.cuh"
#include "two_bin_row.cuh"

namespace diffratio::cuda {

// A finished row is  X + hidden (w H_l + v H_s) - x omega X + update u,  u = gate * branch. With w and v the
// weights of the bins, omega = w + v and s the score:
//   kMlp       (1 - omega) X + w H_l + v H_s + s u        kOutput  (1 - omega) X + s (w H_l + v H_s + u)
//   kResidual  X + s (w H_l + v H_s - omega X + u)        kNone    kMlp with s = 1
struct Blend {
  float hidden, x, update;
};

// constant: the factor of what the score does not multiply, 1. Derivatives by the score are those of 1 and 0.
__device__ __forceinline__ Blend blend_of(Rescale rescale, float score, float constant) {
  const bool residual = rescale == Rescale::kResidual;
  return {residual || rescale == Rescale::kOutput ? score : constant, residual ? score : constant, score};
}

// Else x does not count: a row of both bins is taken out of x in full.
__device__ __forceinline__ bool reads_x(Rescale rescale, const BinRow& row) {
  return rescale == Rescale::kResidual || !row.in_both();
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads, 4) two_bin_blend_kernel(TwoBinBlendArgs b) {
  constexpr int n = kStep<T, kAligned>;
  const ScatterArgs& a = b.scatter;
  const int64_t r = row_of_thread();
  if (r >= a.rows) return;
  const int64_t t = a.place[r], sample = sample_of_row(r, a.tokens);
  const int width = static_cast<int>(a.width);
  const T* x = static_cast<const T*>(a.x) + r * a.width;
  T* out = static_cast<T*>(a.out) + r * a.width;
  if (t < 0) {
    each_step<T, kAligned>(width, [&](int column) {
      store<n, kAligned>(out, column, width, load<n, kAligned>(x, column, width));
    });
    return;
  }

  const BinRow row = bin_row(b.bins, sample, t);
  const Blend blend = blend_of(a.rescale, score(a, r), 1);
  const float of_x = 1 - blend.x * row.omega();
  const float of_large = blend.hidden * row.large, of_small = blend.hidden * row.small;
  const bool with_x = reads_x(a.rescale, row);
  const T* large = static_cast<const T*>(a.hidden) + t * a.width;
  const T* small = static_cast<const T*>(a.hidden) + row.at * a.width;
  const T* branch = static_cast<const T*>(a.branch) + t * a.width;
  const float* gate = a.gate.values + sample * a.gate.stride;
  each_step<T, kAligned>(width, [&](int column) {
    const Vec<T, n> larges = load<n, kAligned>(large, column, width);
    const Vec<T, n> branches = load<n, kAligned>(branch, column, width);
    Vec<T, n> olds{}, smalls{}, finished;
    if (with_x) olds = load<n, kAligned>(x, column, width);
    if (row.in_both()) smalls = load<n, kAligned>(small, column, width);
    const Vec<float, n> gates = load_constant<n, kAligned>(gate, column, width);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float stream = of_large * upcast(larges.value[i]) + of_small * upcast(smalls.value[i]);
      const float update = blend.update * (gates.value[i] * upcast(branches.value[i]));
      finished.value[i] = from_float<T>(of_x * upcast(olds.value[i]) + stream + update);
    }
    store<n, kAligned>(out, column, width, finished);
  });
}

}  // namespace diffratio::cuda
