// The inverse of index: place[index[t]] = t.
#pragma once

#include "arguments.h"
#include "portable.cuh"

namespace diffratio::cuda {

__global__ void row_map_kernel(PlacesArgs a) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (t < a.count) a.place[a.index[t]] = static_cast<int32_t>(t);
}

}  // namespace diffratio::cuda
