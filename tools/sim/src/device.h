// The rest of CUDA's spellings that kernels and launchers use. A float atomicAdd is missing on purpose: its
// sum would depend on the order of the threads.
#pragma once

#include <math.h>

#include <bit>
#include <cstdint>
#include <utility>

#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

inline int __popc(unsigned v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __ffs(int v) { return v == 0 ? 0 : std::countr_zero(static_cast<unsigned>(v)) + 1; }

inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }

inline float rsqrtf(float v) noexcept { return 1.0f / sqrtf(v); }
inline float __fdividef(float a, float b) { return a / b; }

template <class T> T __ldg(const T* from) { return *from; }

#define DIFFRATIO_MIN_MAX(T)                       \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
DIFFRATIO_MIN_MAX(int)
DIFFRATIO_MIN_MAX(unsigned)
DIFFRATIO_MIN_MAX(long)
DIFFRATIO_MIN_MAX(unsigned long)
DIFFRATIO_MIN_MAX(long long)
DIFFRATIO_MIN_MAX(unsigned long long)
#undef DIFFRATIO_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// Between two waits a thread runs alone, so a plain update is atomic.
#define DIFFRATIO_ATOMICS(T)                                                      \
  inline T atomicAdd(T* at, T v) { return std::exchange(*at, *at + v); }          \
  inline T atomicMax(T* at, T v) { return std::exchange(*at, max(*at, v)); }      \
  inline T atomicMin(T* at, T v) { return std::exchange(*at, min(*at, v)); }      \
  inline T atomicOr(T* at, T v) { return std::exchange(*at, *at | v); }
DIFFRATIO_ATOMICS(int)
DIFFRATIO_ATOMICS(unsigned)
DIFFRATIO_ATOMICS(unsigned long long)
#undef DIFFRATIO_ATOMICS

using cudaStream_t = struct SimulatedStream*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
