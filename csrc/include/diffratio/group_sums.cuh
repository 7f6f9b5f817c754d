// Sums over the rows of each group, for every column, by groups and then by tokens.
//
// A warp has kWarp rows of x in the order of their groups. From run to run of rows of one group in one slice, either
// the slice or the group rises: slice + group is where the run leaves its sums, and no other does. Those of a group
// follow each other in partial [slices + G, sums, D], and are added up in a second step.
#pragma once

#include "column_sums.cuh"

namespace diffratio::cuda {

// Terms as in column_sums.cuh. Six blocks: for eight, which nvcc would choose, it spills.
template <class Terms, int kColumns>
__global__ void __launch_bounds__(kSliceTokens, 6) group_sums_kernel(Terms terms, ColumnSums a) {
  constexpr int kSums = Terms::kSums;
  const int width = static_cast<int>(a.width), lane = threadIdx.x % kWarp;
  const int chunks = ceil_div(width, kWarp * kColumns);
  const int column = blockIdx.x % chunks * kWarp * kColumns + lane * kColumns;
  const int64_t slice = static_cast<int64_t>(blockIdx.x / chunks) * kSumWarps + threadIdx.x / kWarp;
  const int64_t begin = slice * kWarp, rows = a.samples * a.tokens, end = min(begin + kWarp, rows);
  if (begin >= rows || column >= width) return;

  float sums[kSums][kColumns] = {};
  int64_t r = a.groups.order[begin];
  int group = static_cast<int>(a.groups.of_row[r]);
  for (int64_t i = begin; i < end;) {
    const int64_t t = a.place[r];
    if (t >= 0) terms.add(sums, r, t, column);
    r = a.groups.order[min(++i, end - 1)];
    const int next = static_cast<int>(a.groups.of_row[r]);
    if (i < end && next == group) continue;
#pragma unroll
    for (int s = 0; s < kSums; ++s)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        a.partial[((slice + group) * kSums + s) * width + column + c] = sums[s][c];
        sums[s][c] = 0;
      }
    group = next;
  }
}

// sums [kSums, G, D], one thread a number.
template <int kSums> __global__ void __launch_bounds__(kSliceTokens) sum_groups_kernel(ColumnSums a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, width = a.width;
  if (i >= kSums * a.groups.count * width) return;
  const int64_t s = i / width / a.groups.count, group = i / width % a.groups.count, column = i % width;
  const int64_t begin = a.groups.bounds[group], end = a.groups.bounds[group + 1];
  float sum = 0;
  if (begin < end)
    for (int64_t slice = begin / kWarp; slice <= (end - 1) / kWarp; ++slice)
      sum += a.partial[((slice + group) * kSums + s) * width + column];
  a.sums[i] = sum;
}

}  // namespace diffratio::cuda
