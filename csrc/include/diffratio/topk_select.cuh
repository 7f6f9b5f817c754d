// Exact top-k of each sample, kept tokens in ascending order; of two sets at once, the smaller one first.
//
// A launch after that of the logits: to learn in one which block of a sample is its last, every call would need
// counters set to zero, by a launch.
//
// One block per sample. A warp has kItems * 32 tokens in a row, 32 neighbours in each step: loads and stores
// of a step are contiguous, and votes put its tokens in order. One tile of keys stays in registers; more
// tiles are read again in every pass.
#pragma once

#include "arguments.h"
#include "radix_select.cuh"

namespace diffratio::cuda {

constexpr int kMaxSelectThreads = 1024;

template <int kItems, bool kOneTile> class Keys {
 public:
  __device__ __forceinline__ Keys(const float* logits, int tokens) : logits_(logits), tokens_(tokens) {
    if (kOneTile) read(0);
  }

  // f(first) for every tile; key(i) is then that of the token first + 32 i + lane.
  template <class F> __device__ __forceinline__ void each_tile(F f) {
    if constexpr (kOneTile) {
      f(warp_first());
    } else {
      for (int tile = 0; tile < tokens_; tile += kItems * blockDim.x) {
        read(tile);
        f(tile + warp_first());
      }
    }
  }

  template <class F> __device__ __forceinline__ void each(F f) {
    each_tile([&](int) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) f(key_[i]);
    });
  }

  __device__ __forceinline__ uint32_t key(int i) const { return key_[i]; }

 private:
  __device__ __forceinline__ static int warp_first() { return threadIdx.x / kWarp * (kWarp * kItems); }

  __device__ __forceinline__ void read(int tile) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int token = tile + warp_first() + i * kWarp + threadIdx.x % kWarp;
      key_[i] = token < tokens_ ? order_key(logits_[token]) : kNoKey;
    }
  }

  const float* logits_;
  int tokens_;
  uint32_t key_[kItems];
};

// How many tokens are above a threshold and how many are at it; two counts of at most 2^15 in one word.
struct Counts {
  uint32_t above, at;

  __device__ __forceinline__ uint32_t packed() const { return above | at << 16; }
  __device__ __forceinline__ static Counts unpacked(uint32_t word) { return {word & 0xffffu, word >> 16}; }
};

// A set as a warp goes through its tokens, 32 in a step: the tokens above the threshold, and the first
// `wanted` at it. `at` and `kept` count the tokens before the step.
struct Members {
  Threshold threshold;
  uint32_t at, kept;

  __device__ __forceinline__ uint32_t vote(uint32_t key, uint32_t lower_lanes) {
    const uint32_t tied = __ballot_sync(kAllLanes, key == threshold.key);
    const bool wanted = key == threshold.key && at + __popc(tied & lower_lanes) < threshold.wanted;
    at += __popc(tied);
    return __ballot_sync(kAllLanes, key > threshold.key || wanted);
  }
};

// The sets where the warps of a block start in a tile; `done` counts the tiles before and takes this one in.
template <int kItems, bool kOneTile, int kSets>
__device__ __forceinline__ void start_members(const Keys<kItems, kOneTile>& keys,
                                              const Threshold (&threshold)[kSets], Counts (&done)[kSets],
                                              Members (&set)[kSets]) {
  DIFFRATIO_SHARED(uint32_t, of_warp, kSets * kWarp);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  if constexpr (!kOneTile) __syncthreads();  // the counts of the previous tile have been read
#pragma unroll
  for (int s = 0; s < kSets; ++s) {
    Counts own{0, 0};
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      own.above += keys.key(i) > threshold[s].key;
      own.at += keys.key(i) == threshold[s].key;
    }
    const uint32_t sum = warp_sum(own.packed());
    if (lane == 0) of_warp[s * kWarp + warp] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int s = 0; s < kSets; ++s) {
    const uint32_t word = lane < warps ? of_warp[s * kWarp + lane] : 0;
    const Counts lower = Counts::unpacked(warp_sum(lane < warp ? word : 0));
    const Counts all = Counts::unpacked(warp_sum(word));
    const uint32_t at = done[s].at + lower.at;
    set[s] = {threshold[s], at, done[s].above + lower.above + min(at, threshold[s].wanted)};
    done[s] = {done[s].above + all.above, done[s].at + all.at};
  }
}

// How many tokens sample b keeps, and the packed row of the first. Equal counts become offsets here.
struct Share {
  uint32_t first, keep;
};

__device__ __forceinline__ Share share_of(const TopkArgs& a, int64_t b) {
  const uint32_t keep = static_cast<uint32_t>(a.keep), first = static_cast<uint32_t>(b) * keep;
  if (a.keep < 0) return {uint32_t(a.offsets[b]), uint32_t(a.offsets[b + 1] - a.offsets[b])};
  if (threadIdx.x == 0) {
    if (b == 0) a.offsets[0] = 0;
    a.offsets[b + 1] = static_cast<int32_t>(first + keep);
  }
  return {first, keep};
}

template <int kItems, int kSets, bool kOneTile>
__global__ void __launch_bounds__(kMaxSelectThreads, 1) topk_select_kernel(TopkArgs a) {
  const int64_t b = blockIdx.x, first_row = b * a.tokens;
  const uint32_t lane = threadIdx.x % kWarp, lower_lanes = (1u << lane) - 1;
  const Share share = share_of(a, b);
  uint32_t keep[kSets] = {share.keep};
  if constexpr (kSets == 2) keep[1] = a.keep_small[b];

  if (a.place)  // the kept ones get theirs behind a barrier of start_members
    for (int64_t token = threadIdx.x; token < a.tokens; token += blockDim.x) a.place[first_row + token] = -1;

  Keys<kItems, kOneTile> keys(a.logits + first_row, a.tokens);
  Threshold threshold[kSets];
  radix_select<kSets>(keys, keep, a.tokens, threshold);

  Counts done[kSets] = {};
  keys.each_tile([&](int first) {
    Members set[kSets];
    start_members(keys, threshold, done, set);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      uint32_t in[kSets], slot[kSets];
#pragma unroll
      for (int s = 0; s < kSets; ++s) {
        in[s] = set[s].vote(keys.key(i), lower_lanes);
        slot[s] = set[s].kept + __popc(in[s] & lower_lanes);
        set[s].kept += __popc(in[s]);
      }
      if (!(in[0] >> lane & 1)) continue;
      if constexpr (kSets == 2) slot[0] = in[1] >> lane & 1 ? slot[1] : keep[1] + slot[0] - slot[1];
      const int64_t row = first_row + first + i * kWarp + lane;
      a.index[share.first + slot[0]] = row;
      if (a.place) a.place[row] = share.first + slot[0];
    }
  });
}

}  // namespace diffratio::cuda
