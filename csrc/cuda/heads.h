// What the launchers of kernels that have heads share.
#pragma once

#include "diffratio/heads.cuh"
#include "launch.h"

namespace diffratio::cuda {

// The backward pass takes the most threads.
inline void check_heads(const QkNormRopeArgs& a) {
  const int lanes = HeadItems<kBackwardVector>(a).lanes();
  const int threads = a.across_heads ? std::max(a.query.heads, a.key.heads) * lanes : lanes;
  if (lanes > kWarp || threads > kMaxAcrossThreads)
    throw std::invalid_argument("diffratio_cuda: qk_norm_rope: heads are too wide");
}

// Whether vectors of n elements may be read: rows and their heads, weights and angles.
template <int n> bool vectors_of(const QkNormRopeArgs& a) {
  for (const HeadsArgs& of : {a.query, a.key, a.value})
    if (of.stride % n != 0 || !all_aligned({of.x, of.weight, of.bias})) return false;
  return a.width % n == 0 && a.pairs % (a.halves ? n : n / 2) == 0 && all_aligned({a.cos, a.sin, a.out});
}

// A block for the heads of one tensor's row, each of them by `lanes` threads.
inline unsigned threads_across(const QkNormRopeArgs& a, int lanes) {
  return static_cast<unsigned>(ceil_div(std::max(a.query.heads, a.key.heads) * lanes, kWarp) * kWarp);
}

}  // namespace diffratio::cuda
