// logits[r] = x[r] . weight, accumulated in the accumulation type.
#pragma once

#include "element.h"

namespace diffratio {
namespace {

template <typename T>
void router_logits(const T* x, const acc_t<T>* weight, int64_t width, acc_t<T>* logits, int64_t begin,
                   int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* row = x + r * width;
    acc_t<T> sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < width; ++d) sum += load(row[d]) * weight[d];
    logits[r] = sum;
  }
}

}  // namespace
}  // namespace diffratio
