// Sums over the threads of a row, in one fixed order: the same bits on every run.
#pragma once

#include "portable.cuh"

namespace diffratio::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0u;

// Every lane gets the sum. x ^ offset pairs the lanes both ways, so all of them add the same two numbers.
template <class N> __device__ __forceinline__ N warp_sum(N value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// n sums over each group of `lanes` neighbours in a warp, a power of two; every lane of the group gets them.
template <int n> __device__ __forceinline__ void group_sums(float (&sums)[n], int lanes) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    if (offset < lanes)
#pragma unroll
      for (int i = 0; i < n; ++i) sums[i] += __shfl_xor_sync(kAllLanes, sums[i], offset);
}

// n sums over the blockDim.x threads of a row; every thread gets them. A row of several warps has its block
// for itself.
template <int n> __device__ __forceinline__ void row_sums(float (&sums)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) sums[i] = warp_sum(sums[i]);
  if (blockDim.x == kWarp) return;

  DIFFRATIO_SHARED(float, of_warp, n * kWarp);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  __syncthreads();  // the previous sums have been read
  if (lane == 0)
#pragma unroll
    for (int i = 0; i < n; ++i) of_warp[i * kWarp + warp] = sums[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < n; ++i) sums[i] = warp_sum(lane < warps ? of_warp[i * kWarp + lane] : 0.0f);
}

}  // namespace diffratio::cuda
