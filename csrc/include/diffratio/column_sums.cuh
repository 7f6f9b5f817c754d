// Sums over the kept rows of each sample, for every column, in ascending token order and a fixed tree.
//
// A block has kSliceTokens tokens of a sample and the columns of a warp; its warps take the kept rows in
// turn. partial [slices, sums, B, D] is then added up slice after slice.
#pragma once

#include "arguments.h"
#include "row.cuh"

namespace diffratio::cuda {

constexpr int kSliceTokens = 256, kSumWarps = kSliceTokens / kWarp;

struct KeptRow {
  int token, place;  // token of the slice, packed row
};

// Lists the kept rows (all without place) of the slice that starts at row `first` and has `tokens` tokens;
// returns how many.
__device__ __forceinline__ int list_kept(const int32_t* place, int64_t first, int tokens,
                                         KeptRow (&kept)[kSliceTokens]) {
  DIFFRATIO_SHARED(int, of_warp, kSumWarps);
  const int token = threadIdx.x, lane = token % kWarp, warp = token / kWarp;
  const int t = token >= tokens ? -1 : place ? place[first + token] : token;
  const uint32_t vote = __ballot_sync(kAllLanes, t >= 0);
  if (lane == 0) of_warp[warp] = __popc(vote);
  __syncthreads();
  int before = __popc(vote & ((1u << lane) - 1)), count = 0;
#pragma unroll
  for (int w = 0; w < kSumWarps; ++w) {
    before += w < warp ? of_warp[w] : 0;
    count += of_warp[w];
  }
  if (t >= 0) kept[before] = {token, t};
  __syncthreads();
  return count;
}

// Terms::add(sums, r, t, column) adds what row r of x, packed row t, gives to kColumns columns.
template <class Terms, int kColumns>
__global__ void __launch_bounds__(kSliceTokens) column_sums_kernel(Terms terms, ColumnSums a) {
  constexpr int kBlockColumns = kWarp * kColumns, kSums = Terms::kSums;
  DIFFRATIO_SHARED(KeptRow, kept, kSliceTokens);
  DIFFRATIO_SHARED(float, of_warp, kSumWarps * kSums * kBlockColumns);
  const int width = static_cast<int>(a.width), lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int chunks = ceil_div(width, kBlockColumns), slices = ceil_div<int64_t>(a.tokens, kSliceTokens);
  const int chunk = blockIdx.x % chunks, slice = blockIdx.x / chunks % slices;
  const int64_t b = blockIdx.x / chunks / slices, token = static_cast<int64_t>(slice) * kSliceTokens;
  const int64_t first = b * a.tokens + token;
  const int count = list_kept(a.place, first, min(a.tokens - token, int64_t{kSliceTokens}), kept);

  float sums[kSums][kColumns] = {};
  const int column = chunk * kBlockColumns + lane * kColumns;
  if (column < width) {
#pragma unroll 4
    for (int i = warp; i < count; i += kSumWarps) terms.add(sums, first + kept[i].token, kept[i].place, column);
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s)
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      of_warp[(warp * kSums + s) * kBlockColumns + lane * kColumns + c] = sums[s][c];
  __syncthreads();
  for (int i = threadIdx.x; i < kSums * kBlockColumns; i += kSliceTokens) {
    const int s = i / kBlockColumns, d = chunk * kBlockColumns + i % kBlockColumns;
    if (d >= width) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kSumWarps; ++w) sum += of_warp[w * kSums * kBlockColumns + i];
    a.partial[((static_cast<int64_t>(slice) * kSums + s) * a.samples + b) * width + d] = sum;
  }
}

// sums[i] = partial[0][i] + partial[1][i] + ...
template <int kSums> __global__ void __launch_bounds__(kSliceTokens) sum_slices_kernel(ColumnSums a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t count = kSums * a.samples * a.width, slices = ceil_div<int64_t>(a.tokens, kSliceTokens);
  if (i >= count) return;
  float sum = 0;
  for (int64_t s = 0; s < slices; ++s) sum += a.partial[s * count + i];
  a.sums[i] = sum;
}

}  // namespace diffratio::cuda
