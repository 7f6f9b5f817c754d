// Statistics of a row, and the modulation that belongs to it.
#pragma once

#include <cmath>

#include "element.h"

namespace diffratio {
namespace {

template <typename A>
struct Stats {
  A mean, rstd;
};

template <typename T>
Stats<acc_t<T>> row_stats(const T* row, int64_t width, acc_t<T> eps) {
  using A = acc_t<T>;
  A sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < width; ++d) sum += load(row[d]);
  const A mean = sum / width;
#pragma omp simd reduction(+ : squares)
  for (int64_t d = 0; d < width; ++d) squares += (load(row[d]) - mean) * (load(row[d]) - mean);
  return {mean, 1 / std::sqrt(squares / width + eps)};
}

template <typename T>
Stats<acc_t<T>> norm_stats(const T* row, int64_t width, Norm norm, acc_t<T> eps) {
  using A = acc_t<T>;
  if (norm == Norm::kNone) return {0, 1};
  if (norm == Norm::kLayer) return row_stats(row, width, eps);
  A squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t d = 0; d < width; ++d) squares += load(row[d]) * load(row[d]);
  return {0, 1 / std::sqrt(squares / width + eps)};
}

// A row of a branch before its gate: as it is, or normed.
template <typename T, bool kNormed>
class Branch {
 public:
  using A = acc_t<T>;

  Branch(const void* branch, int64_t t, const BranchNorm& norm, int64_t width)
      : row_(static_cast<const T*>(branch) + t * width),
        weight_(static_cast<const A*>(norm.weight)),
        bias_(static_cast<const A*>(norm.bias)),
        stats(kNormed ? norm_stats(row_, width, norm.kind, static_cast<A>(norm.eps)) : Stats<A>{0, 1}) {}

  A unit(int64_t d) const { return kNormed ? (load(row_[d]) - stats.mean) * stats.rstd : load(row_[d]); }
  A weight(int64_t d) const { return kNormed && weight_ ? weight_[d] : A{1}; }
  A at(int64_t d) const { return kNormed ? unit(d) * weight(d) + (bias_ ? bias_[d] : A{0}) : load(row_[d]); }

  // The gradient of the branch, from that of what is multiplied by the gate: grad(d).
  template <typename F>
  void backward(F grad, Norm norm, int64_t width, T* grad_branch) const {
    A sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t d = 0; d < width; ++d) {
      const A g = grad(d) * weight(d);
      sum += g;
      dot += g * unit(d);
    }
    sum = norm == Norm::kLayer ? sum / width : A{0};
    dot /= width;
#pragma omp simd
    for (int64_t d = 0; d < width; ++d)
      store(grad_branch + d, stats.rstd * (grad(d) * weight(d) - sum - unit(d) * dot));
  }

 private:
  const T* row_;
  const A *weight_, *bias_;

 public:
  const Stats<A> stats;
};

// What row t, of gradient grad(d), adds to the sums of its modulation for the columns [begin, end).
template <typename T, bool kNormed, typename F>
void add_to_sums(const GateSums& sums, const void* branch, int64_t t, int64_t owner, int64_t width, F grad,
                 int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const T* row = static_cast<const T*>(branch) + t * width;
  const A* stats = static_cast<const A*>(sums.stats) + 2 * t;
  const A mean = kNormed ? stats[0] : A{0}, rstd = kNormed ? stats[1] : A{1};
  A* normed = static_cast<A*>(sums.normed) + owner * width;
#pragma omp simd
  for (int64_t d = begin; d < end; ++d)
    normed[d] += kNormed ? grad(d) * ((load(row[d]) - mean) * rstd) : grad(d) * load(row[d]);
  if (!sums.plain) return;
  A* plain = static_cast<A*>(sums.plain) + owner * width;
#pragma omp simd
  for (int64_t d = begin; d < end; ++d) plain[d] += grad(d);
}

// Which modulation belongs to row `row` of x.
inline int64_t owner(const int64_t* groups, int64_t row, int64_t tokens) { return groups ? groups[row] : row / tokens; }

}  // namespace
}  // namespace diffratio
