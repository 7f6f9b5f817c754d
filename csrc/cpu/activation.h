// What an MLP has between its products: act(gate), times the value of a gated one, times the router's score of
// the row. Nothing but what was given is kept.
#pragma once

#include <cmath>

#include "scatter_rescale.h"

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

// x Phi(x), Phi = erfc(-x / sqrt 2) / 2. One side of Phi comes from erfc(|x| / sqrt 2), the other from it.
template <typename A>
struct ExactGelu {
  A x, gate, density;  // Phi(x) and its derivative

  explicit ExactGelu(A v) : x(v) {
    const A e = exp_negative(-v * v / 2), small = tail(v < 0 ? -v : v, e);
    gate = v < 0 ? small : 1 - small;
    density = A(0.39894228040143268) * e;
  }
  A value() const { return x * gate; }
  A slope() const { return gate + (density == 0 ? A{0} : x * density); }

  // 1 - Phi(v) for v >= 0, e = exp(-v^2 / 2): a polynomial of t, within 5e-8 of it. Vectorises; libm's does not.
  static float tail(float v, float e) {
    const float t = 1 / (1 + 0.353553391f * v);
    float p = -0.0593381259f;
    p = p * t + 0.285979672f;
    p = p * t - 0.490276047f;
    p = p * t + 0.281742193f;
    p = p * t - 0.0292310983f;
    p = p * t + 0.203802261f;
    p = p * t + 0.242824091f;
    p = p * t + 0.282412613f;
    p = p * t + 0.282084401f;
    return 0.5f * e * t * p;
  }
  static double tail(double v, double) { return std::erfc(v * 0.70710678118654752) / 2; }
};

template <typename A>
struct Silu {
  A x, gate, rest;  // sigmoid(x) and 1 - sigmoid(x)

  explicit Silu(A v) : x(v) {
    const A e = exp_negative(v < 0 ? v : -v), large = 1 / (1 + e), small = e * large;
    gate = v < 0 ? small : large;
    rest = v < 0 ? large : small;
  }
  A value() const { return x * gate; }
  A slope() const { return gate + x * gate * rest; }
};

// The router's score of packed row t; 1 where there are none.
template <typename A>
A score_of(const ActivationArgs& a, int64_t t) {
  if (!a.logits) return A{1};
  return static_cast<A>(a.score_scale) * sigmoid(static_cast<const A*>(a.logits)[a.index[t]]);
}

template <typename T, template <typename> typename Act>
void activation(const ActivationArgs& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  for (int64_t t = begin; t < end; ++t) {
    const A score = score_of<A>(a, t);
    const T* gate = static_cast<const T*>(a.gate) + t * a.gate_stride;
    const T* value = static_cast<const T*>(a.value) + t * a.value_stride;
    T* out = static_cast<T*>(a.out) + t * a.out_stride;
    if (a.value) {
#pragma omp simd
      for (int64_t f = 0; f < a.width; ++f) store(out + f, Act<A>(load(gate[f])).value() * load(value[f]) * score);
    } else {
#pragma omp simd
      for (int64_t f = 0; f < a.width; ++f) store(out + f, Act<A>(load(gate[f])).value() * score);
    }
  }
}

template <typename T, template <typename> typename Act>
void activation_backward(const ActivationBackwardArgs& b, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const ActivationArgs& a = b.forward;
  for (int64_t t = begin; t < end; ++t) {
    const A score = score_of<A>(a, t);
    const T* grad = static_cast<const T*>(b.grad) + t * a.width;
    const T* gate = static_cast<const T*>(a.gate) + t * a.gate_stride;
    const T* value = static_cast<const T*>(a.value) + t * a.value_stride;
    T* grad_gate = static_cast<T*>(b.grad_gate) + t * a.width;
    T* grad_value = static_cast<T*>(b.grad_value) + t * a.width;
    double dot = 0;  // of what comes in and what went out, but for the score
    if (a.value) {
#pragma omp simd reduction(+ : dot)
      for (int64_t f = 0; f < a.width; ++f) {
        const Act<A> act(load(gate[f]));
        const A g = load(grad[f]), v = load(value[f]);
        dot += g * v * act.value();
        store(grad_gate + f, score * g * v * act.slope());
        store(grad_value + f, score * g * act.value());
      }
    } else {
#pragma omp simd reduction(+ : dot)
      for (int64_t f = 0; f < a.width; ++f) {
        const Act<A> act(load(gate[f]));
        const A g = load(grad[f]);
        dot += g * act.value();
        store(grad_gate + f, score * g * act.slope());
      }
    }
    if (!a.logits) continue;
    const A rest = sigmoid(-static_cast<const A*>(a.logits)[a.index[t]]);
    static_cast<A*>(b.grad_logits)[a.index[t]] = static_cast<A>(dot) * score * rest;
  }
}

}  // namespace
}  // namespace diffratio
