// Finish the kept rows (residual + gated branch, rescaled by the router score) and write every row of the
// output once: kept rows computed, the others copied.
#pragma once

#include <cmath>

#include "element.h"

namespace diffratio {
namespace {

// A weight without slope ignores the score, which may be NaN.
template <typename A>
A at_score(const Weight& w, A score) {
  return static_cast<A>(w.base) + (w.slope == 0 ? A{0} : static_cast<A>(w.slope) * score);
}
inline bool is_zero(const Weight& w) { return w.base == 0 && w.slope == 0; }

template <typename A>
A sigmoid(A logit) { return 1 / (1 + std::exp(-logit)); }

template <typename T>
void scatter_rescale(const ScatterArgs& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const bool reads_x = !is_zero(a.rescale.pass);
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(a.x) + r * a.width;
    T* out = static_cast<T*>(a.out) + r * a.width;
    const int64_t t = a.place[r];
    if (t < 0) {
      if (out != x) std::memcpy(out, x, a.width * sizeof(T));
      continue;
    }
    const T* hidden = static_cast<const T*>(a.hidden) + t * a.width;
    const T* branch = static_cast<const T*>(a.branch) + t * a.width;
    const A* gate = static_cast<const A*>(a.gate) + r / a.tokens * a.width;
    const A score = static_cast<A>(a.score_scale) * sigmoid(static_cast<const A*>(a.logits)[r]);
    const A pass = at_score(a.rescale.pass, score);
    const A keep = at_score(a.rescale.keep, score), weight = at_score(a.rescale.branch, score);
    if (reads_x) {
#pragma omp simd
      for (int64_t d = 0; d < a.width; ++d)
        store(out + d, pass * load(x[d]) + keep * load(hidden[d]) + weight * gate[d] * load(branch[d]));
    } else {
#pragma omp simd
      for (int64_t d = 0; d < a.width; ++d)
        store(out + d, keep * load(hidden[d]) + weight * gate[d] * load(branch[d]));
    }
  }
}

template <typename T>
void scatter_rescale_backward_rows(const ScatterBackwardArgs& b, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const ScatterArgs& a = b.forward;
  const bool reads_x = !is_zero(a.rescale.pass);
  const A pass_slope = a.rescale.pass.slope, keep_slope = a.rescale.keep.slope;
  const A branch_slope = a.rescale.branch.slope;
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
    const T* branch = static_cast<const T*>(a.branch) + t * a.width;
    T* grad_hidden = static_cast<T*>(b.grad_hidden) + t * a.width;
    T* grad_branch = static_cast<T*>(b.grad_branch) + t * a.width;
    const A* gate = static_cast<const A*>(a.gate) + r / a.tokens * a.width;
    const A sig = sigmoid(static_cast<const A*>(a.logits)[r]);
    const A score = static_cast<A>(a.score_scale) * sig;
    const A pass = at_score(a.rescale.pass, score);
    const A keep = at_score(a.rescale.keep, score), weight = at_score(a.rescale.branch, score);
    A grad_score = 0;
#pragma omp simd reduction(+ : grad_score)
    for (int64_t d = 0; d < a.width; ++d) {
      const A g = load(grad[d]);
      grad_score += g * (keep_slope * load(hidden[d]) + branch_slope * gate[d] * load(branch[d]));
      store(grad_hidden + d, keep * g);
      store(grad_branch + d, weight * gate[d] * g);
    }
    if (reads_x) {
#pragma omp simd reduction(+ : grad_score)
      for (int64_t d = 0; d < a.width; ++d) {
        grad_score += pass_slope * load(grad[d]) * load(x[d]);
        store(grad_x + d, pass * load(grad[d]));
      }
    } else {
      std::memset(grad_x, 0, a.width * sizeof(T));
    }
    const bool scored = pass_slope != 0 || keep_slope != 0 || branch_slope != 0;
    *grad_logit = scored ? grad_score * score * (1 - sig) : 0;
  }
}

// grad_gate for the columns [begin, end), rows in order.
template <typename T>
void scatter_rescale_backward_columns(const ScatterBackwardArgs& b, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const ScatterArgs& a = b.forward;
  for (int64_t t = 0; t < b.count; ++t) {
    const int64_t r = b.index[t];
    const T* grad = static_cast<const T*>(b.grad_out) + r * a.width;
    const T* branch = static_cast<const T*>(a.branch) + t * a.width;
    A* grad_gate = static_cast<A*>(b.grad_gate) + r / a.tokens * a.width;
    const A score = static_cast<A>(a.score_scale) * sigmoid(static_cast<const A*>(a.logits)[r]);
    const A weight = at_score(a.rescale.branch, score);
#pragma omp simd
    for (int64_t d = begin; d < end; ++d) grad_gate[d] += weight * load(branch[d]) * load(grad[d]);
  }
}

}  // namespace
}  // namespace diffratio
