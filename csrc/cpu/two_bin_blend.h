// Blend the residual streams of both bins, finish the kept rows and write every row of the output once.
#pragma once

#include "scatter_rescale.h"
#include "two_bin.h"

namespace diffratio {
namespace {

// With h the blended stream, u = gate * branch, s the score and omega the row's weight, a finished row is
// base + factor * delta:
//   kMlp  (1 - omega) x + h, s u    kResidual  x, s ((h - omega x) + u)    kOutput  (1 - omega) x, s (h + u)
//   kNone  (1 - omega) x + h, 1 u
template <Rescale mode>
struct Blend : Finish<mode> {
  using Finish<mode>::hidden_in_base;
  static constexpr bool residual = mode == Rescale::kResidual;

  template <typename A> static A base(A x, A h, A omega) {
    return residual ? x : (1 - omega) * x + (hidden_in_base ? h : A{0});
  }
  template <typename A> static A delta(A x, A h, A u, A omega) {
    return residual ? (h - omega * x) + u : hidden_in_base ? u : h + u;
  }
};

template <typename T, Rescale mode>
void two_bin_blend(const TwoBinBlendArgs& b, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using F = Blend<mode>;
  const ScatterArgs& a = b.scatter;
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(a.x) + r * a.width;
    T* out = static_cast<T*>(a.out) + r * a.width;
    const int64_t t = a.place[r], sample = r / a.tokens;
    if (t < 0) {
      std::memcpy(out, x, a.width * sizeof(T));
      continue;
    }
    const auto bins = row_bins<A>(b.bins, sample, t);
    const A omega = bins.total();
    const T* large = static_cast<const T*>(a.hidden) + t * a.width;
    const T* small = bins.small < 0 ? large : static_cast<const T*>(a.hidden) + bins.small * a.width;
    const T* branch = static_cast<const T*>(a.branch) + t * a.width;
    const A* gate = static_cast<const A*>(a.gate) + sample * a.width;
    const A score = static_cast<A>(a.score_scale) * sigmoid(static_cast<const A*>(a.logits)[r]);
    const A factor = F::scored ? score : A{1};
#pragma omp simd
    for (int64_t d = 0; d < a.width; ++d) {
      const A row = load(x[d]), h = bins.large_weight * load(large[d]) + bins.small_weight * load(small[d]);
      store(out + d, F::base(row, h, omega) + factor * F::delta(row, h, gate[d] * load(branch[d]), omega));
    }
  }
}

template <typename T, Rescale mode>
void two_bin_blend_backward_rows(const TwoBinBlendBackwardArgs& c, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using F = Blend<mode>;
  const ScatterBackwardArgs& b = c.scatter;
  const ScatterArgs& a = b.forward;
  for (int64_t r = begin; r < end; ++r) {
    const T* grad = static_cast<const T*>(b.grad_out) + r * a.width;
    T* grad_x = static_cast<T*>(b.grad_x) + r * a.width;
    A* grad_logit = static_cast<A*>(b.grad_logits) + r;
    const int64_t t = a.place[r], sample = r / a.tokens;
    if (t < 0) {
      std::memcpy(grad_x, grad, a.width * sizeof(T));
      *grad_logit = 0;
      continue;
    }
    const auto bins = row_bins<A>(c.bins, sample, t);
    const bool both = bins.small >= 0;
    const A omega = bins.total();
    const T* x = static_cast<const T*>(a.x) + r * a.width;
    const T* large = static_cast<const T*>(a.hidden) + t * a.width;
    const T* small = both ? static_cast<const T*>(a.hidden) + bins.small * a.width : large;
    const T* branch = static_cast<const T*>(a.branch) + t * a.width;
    T* grad_large = static_cast<T*>(b.grad_hidden) + t * a.width;
    T* grad_branch = static_cast<T*>(b.grad_branch) + t * a.width;
    const A* gate = static_cast<const A*>(a.gate) + sample * a.width;
    const A sig = sigmoid(static_cast<const A*>(a.logits)[r]);
    const A score = static_cast<A>(a.score_scale) * sig;
    const A factor = F::scored ? score : A{1};
    const A hidden_weight = F::hidden_in_base ? A{1} : factor;
    const A x_weight = F::residual ? factor : A{1};
    double grad_score = 0, weight_dot = 0;  // sums of D terms, which differences of close streams cancel
#pragma omp simd reduction(+ : grad_score, weight_dot)
    for (int64_t d = 0; d < a.width; ++d) {
      const A g = load(grad[d]), row = load(x[d]), l = load(large[d]), s = load(small[d]);
      const A h = bins.large_weight * l + bins.small_weight * s;
      grad_score += g * F::delta(row, h, gate[d] * load(branch[d]), omega);
      weight_dot += g * (both ? hidden_weight * (l - s) : hidden_weight * l - x_weight * row);
      store(grad_x + d, (1 - x_weight * omega) * g);
      store(grad_large + d, bins.large_weight * hidden_weight * g);
      store(grad_branch + d, factor * gate[d] * g);
    }
    if (both) {
      T* grad_small = static_cast<T*>(b.grad_hidden) + bins.small * a.width;
#pragma omp simd
      for (int64_t d = 0; d < a.width; ++d)
        store(grad_small + d, bins.small_weight * hidden_weight * load(grad[d]));
    }
    *grad_logit = F::scored ? static_cast<A>(grad_score * score * (1 - sig)) : A{0};
    static_cast<A*>(c.weight_dots)[t] = static_cast<A>(weight_dot);
  }
}

}  // namespace
}  // namespace diffratio
