// The key of the k-th largest of a block's keys: most significant digit first, 8 bits a pass, exact.
#pragma once

#include "order_key.cuh"
#include "reduce.cuh"

namespace diffratio::cuda {

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits, kPasses = 32 / kDigitBits;

// Kept are the keys above `key`, and of the tokens with exactly that key the first `wanted`.
struct Threshold {
  uint32_t key;
  uint32_t wanted;
};

// Where the search for the threshold of a set starts; a set of none or of all tokens needs none.
__device__ __forceinline__ Threshold start_search(uint32_t keep, uint32_t tokens) {
  if (keep == 0) return {kAboveAllKeys, 0};
  if (keep == tokens) return {kSmallestKey, tokens};
  return {0, keep};
}

// The bin that holds the `wanted`-th key, counted from the top bin, and which of its keys that is. Lane i
// has the bins 8 i to 8 i + 7; all lanes of a warp come here and get the same.
__device__ __forceinline__ Threshold find_bin(const int4* bins, uint32_t wanted) {
  constexpr int kPerLane = kDigits / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int4 low = bins[2 * lane], high = bins[2 * lane + 1];
  const uint32_t count[kPerLane] = {uint32_t(low.x),  uint32_t(low.y),  uint32_t(low.z),  uint32_t(low.w),
                                    uint32_t(high.x), uint32_t(high.y), uint32_t(high.z), uint32_t(high.w)};
  uint32_t own = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) own += count[i];
  uint32_t above = own;  // in this lane's bins and all higher ones, then without its own
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint32_t higher = __shfl_down_sync(kAllLanes, above, offset);
    above += lane + offset < kWarp ? higher : 0;
  }
  above -= own;

  Threshold found{0, 0};
#pragma unroll
  for (int i = kPerLane - 1; i >= 0; --i) {
    if (above < wanted && wanted <= above + count[i]) found = {uint32_t(kPerLane * lane + i), wanted - above};
    above += count[i];
  }
  const int owner = __ffs(__ballot_sync(kAllLanes, found.wanted != 0)) - 1;
  return {__shfl_sync(kAllLanes, found.key, owner), __shfl_sync(kAllLanes, found.wanted, owner)};
}

// Thresholds of kSets sets of a block's keys at once: set s holds the keep[s] largest of `tokens` keys.
// Keys::each(f) calls f(key) for every key of this thread. The first digit is counted once for all sets; every
// pass has bins of its own, so that none are cleared in between. Lanes that count in one bin are added up by
// the hardware (ATOMS.POPC.INC), so that equal keys cost nothing.
template <int kSets, class Keys>
__device__ __forceinline__ void radix_select(Keys& keys, const uint32_t (&keep)[kSets], uint32_t tokens,
                                             Threshold (&threshold)[kSets]) {
  constexpr int kBins = kDigits / 4;  // of one histogram, as int4
  DIFFRATIO_SHARED(int4, histogram, kPasses * kSets * kBins);
  DIFFRATIO_SHARED(Threshold, found, kSets);
  bool search[kSets], any = false;
#pragma unroll
  for (int s = 0; s < kSets; ++s) {
    search[s] = keep[s] != 0 && keep[s] != tokens;
    any |= search[s];
    threshold[s] = start_search(keep[s], tokens);
  }
  if (!any) return;

  for (int i = threadIdx.x; i < kPasses * kSets * kBins; i += blockDim.x) histogram[i] = make_int4(0, 0, 0, 0);
  __syncthreads();
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int shift = 32 - kDigitBits * (pass + 1);
    const auto bins = [&](int s) { return histogram + (pass * kSets + (pass == 0 ? 0 : s)) * kBins; };
    keys.each([&](uint32_t key) {
#pragma unroll
      for (int s = 0; s < kSets; ++s) {
        const bool prefix = pass == 0 || (key ^ threshold[s].key) >> shift >> kDigitBits == 0;
        if (pass == 0 ? s == 0 : search[s] && prefix)
          atomicAdd(reinterpret_cast<int*>(bins(s)) + (key >> shift) % kDigits, 1);
      }
    });
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kSets; ++s) {
      if (!search[s] || threadIdx.x / kWarp != s % (blockDim.x / kWarp)) continue;
      const Threshold bin = find_bin(bins(s), threshold[s].wanted);
      if (threadIdx.x % kWarp == 0) found[s] = bin;
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kSets; ++s)
      if (search[s]) threshold[s] = {threshold[s].key | found[s].key << shift, found[s].wanted};
  }
}

}  // namespace diffratio::cuda
