// The blend of both bins' GELUs (tanh), so that fc2 runs once on it; nothing but what GELU was given is kept.
#pragma once

#include "activation.h"
#include "two_bin.h"

namespace diffratio {
namespace {

// Rows in order: `sample` follows them.
inline int64_t sample_of(const TwoBins& bins, int64_t sample, int64_t t) {
  while (t >= bins.cu_seqlens_large[sample + 1]) ++sample;
  return sample;
}

template <typename T>
void two_bin_gelu(const TwoBinGeluArgs& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  int64_t sample = 0;
  for (int64_t t = begin; t < end; ++t) {
    sample = sample_of(a.bins, sample, t);
    const auto bins = row_bins<A>(a.bins, sample, t);
    const T* large = static_cast<const T*>(a.pre) + t * a.width;
    const T* small = static_cast<const T*>(a.pre) + bins.small * a.width;
    T* out = static_cast<T*>(a.inner) + t * a.width;
    if (bins.small < 0) {
#pragma omp simd
      for (int64_t d = 0; d < a.width; ++d) store(out + d, bins.large_weight * Gelu<A>(load(large[d])).value());
    } else {
#pragma omp simd
      for (int64_t d = 0; d < a.width; ++d)
        store(out + d, bins.large_weight * Gelu<A>(load(large[d])).value() +
                           bins.small_weight * Gelu<A>(load(small[d])).value());
    }
  }
}

template <typename T>
void two_bin_gelu_backward(const TwoBinGeluBackwardArgs& b, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const TwoBinGeluArgs& a = b.forward;
  int64_t sample = 0;
  for (int64_t t = begin; t < end; ++t) {
    sample = sample_of(a.bins, sample, t);
    const auto bins = row_bins<A>(a.bins, sample, t);
    const T* grad = static_cast<const T*>(b.grad) + t * a.width;
    const T* large = static_cast<const T*>(a.pre) + t * a.width;
    T* grad_large = static_cast<T*>(b.grad_pre) + t * a.width;
    double dot = 0;  // a sum of F terms, most of which the other bin cancels
#pragma omp simd reduction(+ : dot)
    for (int64_t d = 0; d < a.width; ++d) {
      const Gelu<A> gelu(load(large[d]));
      const A g = load(grad[d]);
      dot += g * gelu.value();
      store(grad_large + d, bins.large_weight * g * gelu.slope());
    }
    if (bins.small >= 0) {
      const T* small = static_cast<const T*>(a.pre) + bins.small * a.width;
      T* grad_small = static_cast<T*>(b.grad_pre) + bins.small * a.width;
#pragma omp simd reduction(- : dot)
      for (int64_t d = 0; d < a.width; ++d) {
        const Gelu<A> gelu(load(small[d]));
        const A g = load(grad[d]);
        dot -= g * gelu.value();
        store(grad_small + d, bins.small_weight * g * gelu.slope());
      }
    }
    static_cast<A*>(b.weight_dots)[t] = static_cast<A>(dot);
  }
}

}  // namespace
}  // namespace diffratio
