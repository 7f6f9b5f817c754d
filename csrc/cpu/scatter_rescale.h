// Finish the kept rows (residual + gated branch, rescaled by the router score) and write every row of the
// output once: kept rows computed, the others copied.
#pragma once

#include "norm.h"

namespace diffratio {
namespace {

// A finished row is  base + factor * delta,  with u = gate * branch and s the score:
//   kMlp  h + s u      kResidual  x + s (h - x + u)      kOutput  0 + s (h + u)      kNone  h + 1 u
template <Rescale mode>
struct Finish {
  static constexpr bool reads_x = mode == Rescale::kResidual;
  static constexpr bool scored = mode != Rescale::kNone;
  static constexpr bool hidden_in_base = mode == Rescale::kMlp || mode == Rescale::kNone;

  template <typename A> static A base(A x, A h) { return reads_x ? x : hidden_in_base ? h : A{0}; }
  template <typename A> static A delta(A x, A h, A u) {
    return reads_x ? (h - x) + u : hidden_in_base ? u : h + u;
  }
};

template <typename A>
A sigmoid(A logit) { return 1 / (1 + std::exp(-logit)); }

template <typename T, Rescale mode, bool kNormed>
void scatter_rescale(const ScatterArgs& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using F = Finish<mode>;
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(a.x) + r * a.width;
    T* out = static_cast<T*>(a.out) + r * a.width;
    const int64_t t = a.place[r];
    if (t < 0) {
      std::memcpy(out, x, a.width * sizeof(T));
      continue;
    }
    const T* hidden = static_cast<const T*>(a.hidden) + t * a.width;
    const Branch<T, kNormed> branch(a.branch, t, a.norm, a.width);
    const A* gate = static_cast<const A*>(a.gate) + owner(a.groups, r, a.tokens) * a.width;
    const A score = static_cast<A>(a.score_scale) * sigmoid(static_cast<const A*>(a.logits)[r]);
    const A factor = F::scored ? score : A{1};
#pragma omp simd
    for (int64_t d = 0; d < a.width; ++d) {
      const A row = F::reads_x ? load(x[d]) : A{0}, h = load(hidden[d]);
      store(out + d, F::base(row, h) + factor * F::delta(row, h, gate[d] * branch.at(d)));
    }
  }
}

template <typename T, Rescale mode, bool kNormed>
void scatter_rescale_backward_rows(const ScatterBackwardArgs& b, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using F = Finish<mode>;
  const ScatterArgs& a = b.forward;
  for (int64_t r = begin; r < end; ++r) {
    const T* grad = static_cast<const T*>(b.grad_out) + r * a.width;
    T* grad_x = static_cast<T*>(b.grad_x) + r * a.width;
    A* grad_logit = static_cast<A*>(b.grad_logits) + r;
    const int64_t t = a.place[r];
    if (t < 0) {
      std::memcpy(grad_x, grad, a.width * sizeof(T));
      *grad_logit = 0;
      continue;
    }
    const T* x = static_cast<const T*>(a.x) + r * a.width;
    const T* hidden = static_cast<const T*>(a.hidden) + t * a.width;
    const Branch<T, kNormed> branch(a.branch, t, a.norm, a.width);
    T* grad_hidden = static_cast<T*>(b.grad_hidden) + t * a.width;
    T* grad_branch = static_cast<T*>(b.grad_branch) + t * a.width;
    const A* gate = static_cast<const A*>(a.gate) + owner(a.groups, r, a.tokens) * a.width;
    const A sig = sigmoid(static_cast<const A*>(a.logits)[r]);
    const A score = static_cast<A>(a.score_scale) * sig;
    const A factor = F::scored ? score : A{1};
    const A hidden_weight = F::hidden_in_base ? A{1} : factor;
    A grad_score = 0;
#pragma omp simd reduction(+ : grad_score)
    for (int64_t d = 0; d < a.width; ++d) {
      const A g = load(grad[d]), row = F::reads_x ? load(x[d]) : A{0};
      grad_score += g * F::delta(row, load(hidden[d]), gate[d] * branch.at(d));
      store(grad_x + d, F::reads_x ? (1 - factor) * g : A{0});
      store(grad_hidden + d, hidden_weight * g);
      if (!kNormed) store(grad_branch + d, factor * gate[d] * g);
    }
    if (kNormed) {
      branch.backward([&](int64_t d) { return factor * gate[d] * load(grad[d]); }, a.norm.kind, a.width, grad_branch);
      static_cast<A*>(b.sums.stats)[2 * t] = branch.stats.mean;
      static_cast<A*>(b.sums.stats)[2 * t + 1] = branch.stats.rstd;
    }
    *grad_logit = F::scored ? grad_score * score * (1 - sig) : A{0};
  }
}

// The sums of the gate for the columns [begin, end), rows in order.
template <typename T, Rescale mode, bool kNormed>
void scatter_rescale_backward_columns(const ScatterBackwardArgs& b, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const ScatterArgs& a = b.forward;
  for (int64_t t = 0; t < b.count; ++t) {
    const int64_t r = b.index[t];
    const T* grad = static_cast<const T*>(b.grad_out) + r * a.width;
    const A score = static_cast<A>(a.score_scale) * sigmoid(static_cast<const A*>(a.logits)[r]);
    const A factor = Finish<mode>::scored ? score : A{1};
    add_to_sums<T, kNormed>(b.sums, a.branch, t, owner(a.groups, r, a.tokens), a.width,
                            [&](int64_t d) { return factor * load(grad[d]); }, begin, end);
  }
}

}  // namespace
}  // namespace diffratio
