// Integers in the order of scores: larger logit first, -0 equals +0, NaN below -inf.
#pragma once

#include "portable.cuh"

namespace diffratio::cuda {

// Below every key: a token that does not exist. NaN is the smallest key; -inf is 0x007fffff, +inf 0xff800000.
constexpr uint32_t kNoKey = 0, kSmallestKey = 1, kAboveAllKeys = ~0u;

__device__ __forceinline__ uint32_t order_key(float logit) {
  if (logit != logit) return kSmallestKey;
  const uint32_t bits = logit == 0.0f ? 0u : __float_as_uint(logit);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace diffratio::cuda
