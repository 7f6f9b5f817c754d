// Exact top-k with one order for every backend: larger logit first, -0 equals +0, NaN below -inf,
// ties to the lowest token index; the kept tokens come out in ascending order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace diffratio {

inline uint32_t order_key(float logit) {
  uint32_t bits;
  logit += 0.0f;  // -0 becomes +0
  std::memcpy(&bits, &logit, sizeof bits);
  if (logit != logit) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

inline uint64_t order_key(double logit) {
  uint64_t bits;
  logit += 0.0;
  std::memcpy(&bits, &logit, sizeof bits);
  if (logit != logit) return 0;
  constexpr uint64_t sign = uint64_t{1} << 63;
  return bits & sign ? ~bits : bits | sign;
}

// Most significant digit first radix select: after the last digit, `prefix` is the key of the k-th largest
// and `wanted` how many of the tokens with exactly that key are kept.
template <typename Logit>
void topk_select_row(const Logit* logits, int64_t tokens, int64_t keep, int64_t first_row, int64_t* index) {
  using Key = decltype(order_key(Logit{}));
  constexpr int kDigit = 8, kBuckets = 1 << kDigit;
  if (keep == 0) return;

  std::vector<Key> keys(tokens);
  for (int64_t i = 0; i < tokens; ++i) keys[i] = order_key(logits[i]);

  Key prefix = 0, decided = 0;
  int64_t wanted = keep;
  for (int shift = sizeof(Key) * 8 - kDigit; shift >= 0; shift -= kDigit) {
    int64_t count[kBuckets] = {};
    for (const Key key : keys)
      if ((key & decided) == prefix) ++count[(key >> shift) & (kBuckets - 1)];
    int digit = kBuckets - 1;
    while (wanted > count[digit]) wanted -= count[digit--];
    prefix |= static_cast<Key>(digit) << shift;
    decided |= static_cast<Key>(kBuckets - 1) << shift;
  }

  for (int64_t i = 0; i < tokens; ++i)
    if (keys[i] > prefix || (keys[i] == prefix && wanted-- > 0)) *index++ = first_row + i;
}

// Two bins: the small set, then the tokens that only the large one keeps, each in ascending order.
template <typename Logit>
void topk_select_row(const Logit* logits, int64_t tokens, int64_t keep, int64_t keep_small, int64_t first_row,
                     int64_t* index) {
  if (keep_small == 0 || keep_small == keep)
    return topk_select_row(logits, tokens, keep, first_row, index);
  std::vector<int64_t> large(keep);
  topk_select_row(logits, tokens, keep, first_row, large.data());
  topk_select_row(logits, tokens, keep_small, first_row, index);
  std::set_difference(large.begin(), large.end(), index, index + keep_small, index + keep_small);
}

}  // namespace diffratio
