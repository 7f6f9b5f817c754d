// Query and key normed, turned by the place of their token and, with the value, written side by side.
#pragma once

#include "norm.h"

namespace diffratio {
namespace {

// One head: x [d] -> out [d]. cos and sin [pairs] or null; channels beyond 2 * pairs are not turned.
template <typename T>
void head(const T* x, Stats<acc_t<T>> s, const acc_t<T>* weight, const acc_t<T>* bias, const acc_t<T>* cos,
          const acc_t<T>* sin, int64_t pairs, bool halves, int64_t width, T* out) {
  using A = acc_t<T>;
  A n[kMaxHeadWidth];
#pragma omp simd
  for (int64_t d = 0; d < width; ++d)
    n[d] = (load(x[d]) - s.mean) * s.rstd * (weight ? weight[d] : A{1}) + (bias ? bias[d] : A{0});
  int64_t done = 0;
  if (cos && halves) {
#pragma omp simd
    for (int64_t i = 0; i < pairs; ++i) {
      store(out + i, n[i] * cos[i] - n[i + pairs] * sin[i]);
      store(out + i + pairs, n[i] * sin[i] + n[i + pairs] * cos[i]);
    }
    done = 2 * pairs;
  } else if (cos) {
#pragma omp simd
    for (int64_t i = 0; i < pairs; ++i) {
      store(out + 2 * i, n[2 * i] * cos[i] - n[2 * i + 1] * sin[i]);
      store(out + 2 * i + 1, n[2 * i] * sin[i] + n[2 * i + 1] * cos[i]);
    }
    done = 2 * pairs;
  }
  for (int64_t d = done; d < width; ++d) store(out + d, n[d]);
}

template <typename T>
void heads_of_row(const QkNormRopeArgs& a, const HeadsArgs& of, int64_t t, int64_t place, T* out) {
  using A = acc_t<T>;
  const T* row = static_cast<const T*>(of.x) + t * of.stride;
  const A* weight = static_cast<const A*>(of.weight);
  const A* bias = static_cast<const A*>(of.bias);
  const A eps = static_cast<A>(a.eps);
  Stats<A> s{0, 1};
  if (a.across_heads) s = norm_stats(row, of.heads * a.width, a.norm, eps);
  for (int64_t h = 0; h < of.heads; ++h) {
    const int64_t at = h * a.width, own = a.across_heads ? at : 0;
    if (!a.across_heads) s = norm_stats(row + at, a.width, a.norm, eps);
    const int64_t angle = (place * a.table_heads + (a.table_heads == 1 ? 0 : h)) * a.pairs;
    head(row + at, s, weight ? weight + own : nullptr, bias ? bias + own : nullptr,
         a.cos ? static_cast<const A*>(a.cos) + angle : nullptr,
         a.sin ? static_cast<const A*>(a.sin) + angle : nullptr, a.pairs, a.halves, a.width, out + at);
  }
}

template <typename T>
void qk_norm_rope(const QkNormRopeArgs& a, int64_t begin, int64_t end) {
  const int64_t q = a.query.heads * a.width, k = a.key.heads * a.width;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t sample = a.index[t] / a.tokens;
    const int64_t place = a.table_by_sample ? a.index[t] : a.index[t] % a.tokens;
    T* out = static_cast<T*>(a.out) + (t + (a.shift ? a.shift[sample] : 0)) * (q + 2 * k);
    heads_of_row(a, a.query, t, place, out);
    heads_of_row(a, a.key, t, place, out + q);
    std::memcpy(out + q + k, static_cast<const T*>(a.value) + t * a.value_stride, k * sizeof(T));
  }
}

}  // namespace
}  // namespace diffratio
