// Gather the kept rows, norm without affine, then scale and shift by the row's own sample or group.
#pragma once

#include "norm.h"

namespace diffratio {
namespace {

template <typename T>
void gather_adaln(const AdalnArgs& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  for (int64_t t = begin; t < end; ++t) {
    const T* row = static_cast<const T*>(a.x) + (a.gather ? a.index[t] : t) * a.width;
    const int64_t vectors = owner(a.groups, a.index[t], a.tokens) * a.width;
    const A* shift = static_cast<const A*>(a.shift) + vectors;
    const A* scale = static_cast<const A*>(a.scale) + vectors;
    T* normed = static_cast<T*>(a.normed) + t * a.width;
    if (a.gather) std::memcpy(static_cast<T*>(a.rows) + t * a.width, row, a.width * sizeof(T));

    const Stats<A> s = norm_stats(row, a.width, a.norm, static_cast<A>(a.eps));
#pragma omp simd
    for (int64_t d = 0; d < a.width; ++d)
      store(normed + d, (load(row[d]) - s.mean) * s.rstd * (1 + scale[d]) + shift[d]);
  }
}

// With g = grad_normed * (1 + scale) and n the normalised row:
// grad_row = grad_rows + rstd * (g - mean(g) - n * mean(g * n)), of an rms norm without mean(g). Rows are rows of x
// with gather (zero where not kept), packed rows without.
template <typename T>
void gather_adaln_backward_rows(const AdalnBackwardArgs& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  for (int64_t r = begin; r < end; ++r) {
    T* grad_x = static_cast<T*>(a.grad_x) + r * a.width;
    const int64_t t = a.place ? a.place[r] : r;
    if (t < 0) {
      std::memset(grad_x, 0, a.width * sizeof(T));
      continue;
    }
    const T* row = static_cast<const T*>(a.rows) + t * a.width;
    const T* grad = static_cast<const T*>(a.grad_normed) + t * a.width;
    const T* direct = a.grad_rows ? static_cast<const T*>(a.grad_rows) + t * a.width : nullptr;
    const A* scale = static_cast<const A*>(a.scale) + owner(a.groups, a.index[t], a.tokens) * a.width;

    const Stats<A> s = norm_stats(row, a.width, a.norm, static_cast<A>(a.eps));
    static_cast<A*>(a.stats)[2 * t] = s.mean;
    static_cast<A*>(a.stats)[2 * t + 1] = s.rstd;
    A sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t d = 0; d < a.width; ++d) {
      const A g = load(grad[d]) * (1 + scale[d]);
      sum += g;
      dot += g * (load(row[d]) - s.mean) * s.rstd;
    }
    sum = a.norm == Norm::kLayer ? sum / a.width : A{0};
    dot /= a.width;
#pragma omp simd
    for (int64_t d = 0; d < a.width; ++d) {
      const A g = load(grad[d]) * (1 + scale[d]);
      const A n = (load(row[d]) - s.mean) * s.rstd;
      store(grad_x + d, s.rstd * (g - sum - n * dot) + (direct ? load(direct[d]) : A{0}));
    }
  }
}

// grad_shift and grad_scale for the columns [begin, end): rows in order, so the sum does not depend on threads.
template <typename T>
void gather_adaln_backward_columns(const AdalnBackwardArgs& a, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const A* stats = static_cast<const A*>(a.stats);
  for (int64_t t = 0; t < a.count; ++t) {
    const int64_t vectors = owner(a.groups, a.index[t], a.tokens) * a.width;
    const T* row = static_cast<const T*>(a.rows) + t * a.width;
    const T* grad = static_cast<const T*>(a.grad_normed) + t * a.width;
    A* grad_shift = static_cast<A*>(a.grad_shift) + vectors;
    A* grad_scale = static_cast<A*>(a.grad_scale) + vectors;
    const A mean = stats[2 * t], rstd = stats[2 * t + 1];
#pragma omp simd
    for (int64_t d = begin; d < end; ++d) {
      grad_shift[d] += load(grad[d]);
      grad_scale[d] += load(grad[d]) * (load(row[d]) - mean) * rstd;
    }
  }
}

}  // namespace
}  // namespace diffratio
