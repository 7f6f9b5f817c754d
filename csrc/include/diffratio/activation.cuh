// What an MLP has between its products: act(gate), times the value of a gated one, times the router's score of the
// row. The backward pass computes it again.
#pragma once

#include "scatter_rescale.cuh"

namespace diffratio::cuda {

struct Activated {
  float value, slope;
};

// 0.5 (1 + tanh u) = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
__device__ __forceinline__ Activated gelu(float x) {
  constexpr float kLinear = 1.5957691216057308f, kCubic = 0.044715f, kLog2E = 1.4426950408889634f;
  const float square = x * x;
  const float decay = exp2f(-kLog2E * kLinear * fabsf(x) * (1 + kCubic * square));  // exp(-|2 u|)
  const float near = __fdividef(1.0f, 1 + decay), gate = x < 0 ? decay * near : near;
  const float both = decay * near * near;  // gate (1 - gate); 1 - gate would cancel
  // Where `both` is 0 the bound keeps an infinite square from making a NaN of it.
  return {x * gate, gate + x * both * (kLinear * (1 + 3 * kCubic * min(square, 1e4f)))};
}

// x Phi(x). The small side of Phi is 1 - Phi(|x|) = e t p(t) / 2, as in csrc/cpu/activation.h; the other comes from it.
__device__ __forceinline__ Activated exact_gelu(float x) {
  constexpr float kDensity = 0.39894228f, kHalfLog2E = 0.72134752f;
  const float e = exp2f(-kHalfLog2E * x * x), t = __fdividef(1.0f, 1 + 0.353553391f * fabsf(x));
  float p = -0.0593381259f;
  p = p * t + 0.285979672f;
  p = p * t - 0.490276047f;
  p = p * t + 0.281742193f;
  p = p * t - 0.0292310983f;
  p = p * t + 0.203802261f;
  p = p * t + 0.242824091f;
  p = p * t + 0.282412613f;
  p = p * t + 0.282084401f;
  const float small = 0.5f * e * t * p, gate = x < 0 ? small : 1 - small;
  return {x * gate, gate + x * (kDensity * e)};
}

// x sigmoid(x)
__device__ __forceinline__ Activated silu(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
  const float decay = exp2f(-kLog2E * fabsf(x));
  const float near = __fdividef(1.0f, 1 + decay), gate = x < 0 ? decay * near : near;
  return {x * gate, gate + x * (decay * near * near)};
}

template <Activation kind> __device__ __forceinline__ Activated activate(float x) {
  if constexpr (kind == Activation::kGeluTanh) return gelu(x);
  if constexpr (kind == Activation::kGelu) return exact_gelu(x);
  if constexpr (kind == Activation::kSilu) return silu(x);
}

// The score of packed row t; 1 where there are none.
__device__ __forceinline__ float score(const ActivationArgs& a, int64_t t) {
  return a.logits ? a.score_scale * sigmoid(a.logits[a.index[t]]) : 1.0f;
}

// The value of a gated MLP, 1 of another one.
template <int n, bool kAligned, class T>
__device__ __forceinline__ Vec<T, n> load_value(const T* value, int column, int width) {
  if (value) return load<n, kAligned>(value, column, width);
  Vec<T, n> ones;
#pragma unroll
  for (int i = 0; i < n; ++i) ones.value[i] = from_float<T>(1);
  return ones;
}

template <class T, Activation kind, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads) activation_kernel(ActivationArgs a) {
  constexpr int n = kPerVector<T>;
  const int64_t t = row_of_thread();
  if (t >= a.rows) return;
  const int width = static_cast<int>(a.width);
  const T* gate = static_cast<const T*>(a.gate) + t * a.gate_stride;
  const T* value = static_cast<const T*>(a.value) + t * a.value_stride;
  T* out = static_cast<T*>(a.out) + t * a.out_stride;
  const float factor = score(a, t);

  each_column<T>(width, [&](int column) {
    const Vec<T, n> gates = load<n, kAligned>(gate, column, width);
    const Vec<T, n> values = load_value<n, kAligned>(value, column, width);
    Vec<T, n> inner;
#pragma unroll
    for (int i = 0; i < n; ++i)
      inner.value[i] =
          from_float<T>(factor * (activate<kind>(upcast(gates.value[i])).value * upcast(values.value[i])));
    store<n, kAligned>(out, column, width, inner);
  });
}

template <class T, Activation kind, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads, 4) activation_backward_kernel(ActivationBackwardArgs b) {
  constexpr int n = kPerVector<T>;
  const ActivationArgs& a = b.forward;
  const int64_t t = row_of_thread();
  if (t >= a.rows) return;
  const int width = static_cast<int>(a.width);
  const T* grad = static_cast<const T*>(b.grad) + t * a.width;
  const T* gate = static_cast<const T*>(a.gate) + t * a.gate_stride;
  const T* value = static_cast<const T*>(a.value) + t * a.value_stride;
  T* grad_gate = static_cast<T*>(b.grad_gate) + t * a.width;
  T* grad_value = static_cast<T*>(b.grad_value) + t * a.width;
  const float factor = score(a, t);

  float dot[1] = {0};  // of what comes in and what went out, but for the score
  each_column<T>(width, [&](int column) {
    const Vec<T, n> grads = load<n, kAligned>(grad, column, width), gates = load<n, kAligned>(gate, column, width);
    const Vec<T, n> values = load_value<n, kAligned>(value, column, width);
    Vec<T, n> to_gate, to_value;
    float part = 0;  // a sum of sums rounds less
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const Activated act = activate<kind>(upcast(gates.value[i]));
      const float g = upcast(grads.value[i]), to_act = g * upcast(values.value[i]);
      to_value.value[i] = from_float<T>(factor * (g * act.value));
      to_gate.value[i] = from_float<T>(factor * (to_act * act.slope));
      part += to_act * act.value;
    }
    dot[0] += part;
    store<n, kAligned>(grad_gate, column, width, to_gate);
    if (a.value) store<n, kAligned>(grad_value, column, width, to_value);
  });
  if (!a.logits) return;
  row_sums(dot);
  const int64_t r = a.index[t];
  if (threadIdx.x == 0) b.grad_logits[r] = dot[0] * factor * sigmoid(-a.logits[r]);
}

}  // namespace diffratio::cuda
