// The blend of both bins' GELUs (tanh), so that fc2 runs once on it; nothing but what GELU was given is kept.
#pragma once

#include <cmath>

#include "two_bin.h"

namespace diffratio {
namespace {

inline double exp_negative(double v) { return std::exp(v); }

// exp(v) for v <= 0: 2^n exp(r) with |r| <= ln(2) / 2, Taylor to the 7th power (5e-9). Vectorises; libm's does not.
inline float exp_negative(float v) {
  const float u = v < -87.0f ? -87.0f : v;
  const float shifted = u * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds n into the lowest bits
  const float n = shifted - 12582912.0f;
  const float r = (u - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t power = __builtin_bit_cast(int32_t, shifted) << 23;
  const float power_of_e = __builtin_bit_cast(float, __builtin_bit_cast(int32_t, p) + power);
  return v < -87.0f ? 0.0f : power_of_e;
}

// GELU is x sigmoid(z); both sides of the sigmoid come from exp(-|z|), so that neither cancels.
template <typename A>
struct Gelu {
  static constexpr A a = A(0.044715), c = A(1.5957691216057308);  // 2 sqrt(2 / pi)
  A x, gate, rest;                                                 // sigmoid(z) and 1 - sigmoid(z)

  explicit Gelu(A v) : x(v) {
    const A z = c * (v + a * v * v * v), e = exp_negative(z < 0 ? z : -z);
    const A large = 1 / (1 + e), small = e * large;
    gate = z < 0 ? small : large;
    rest = z < 0 ? large : small;
  }
  A value() const { return x * gate; }
  // Where gate or rest is 0 the bound keeps an infinite square from making a NaN of it.
  A slope() const { return gate + x * gate * rest * c * (1 + 3 * a * (x * x < 1e4 ? x * x : A(1e4))); }
};

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
