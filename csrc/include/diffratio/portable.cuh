// The only kernel file that knows whether nvcc compiles it for a GPU or g++ for the simulator (tools/sim).
//
// So that the other files need not know: shared arrays come from DIFFRATIO_SHARED, launches from
// DIFFRATIO_LAUNCH, there is no inline PTX, and lanes of a warp meet only in calls that name them by a mask.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define DIFFRATIO_SHARED(T, name, n) __shared__ T name[n]
#define DIFFRATIO_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)

namespace diffratio {

using bfloat16 = __nv_bfloat16;
using half = __half;

__host__ __device__ __forceinline__ float to_float(bfloat16 v) { return __bfloat162float(v); }
__host__ __device__ __forceinline__ float to_float(half v) { return __half2float(v); }

template <class T> __host__ __device__ __forceinline__ T from_float(float v) { return static_cast<T>(v); }
template <> __host__ __device__ __forceinline__ bfloat16 from_float<bfloat16>(float v) {
  return __float2bfloat16(v);
}
template <> __host__ __device__ __forceinline__ half from_float<half>(float v) { return __float2half(v); }

}  // namespace diffratio

#else

#include "simulator.h"

#endif

namespace diffratio {

__host__ __device__ __forceinline__ float to_float(float v) { return v; }

}  // namespace diffratio
