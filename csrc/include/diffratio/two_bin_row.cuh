// What a packed row of two bins (arguments.h) is in each of them.
#pragma once

#include "arguments.h"
#include "row.cuh"

namespace diffratio::cuda {

struct BinRow {
  float large, small;  // weights of the bins; small is 0 where only the large one holds the row
  int64_t at;          // its row in tensors of both bins, -1 where only the large one holds it

  __device__ __forceinline__ bool in_both() const { return at >= 0; }
  // The weights of the bins that hold it, summed.
  __device__ __forceinline__ float omega() const { return in_both() ? 1.0f : large; }
};

// Packed row t of sample b.
__device__ __forceinline__ BinRow bin_row(const Bins& bins, int64_t b, int64_t t) {
  const float large = bins.weight_large[b];
  const int64_t rank = t - bins.cu_seqlens_large[b], first = bins.cu_seqlens_small[b];
  if (rank >= bins.cu_seqlens_small[b + 1] - first) return {large, 0.0f, -1};
  return {large, 1 - large, bins.rows + first + rank};
}

}  // namespace diffratio::cuda
