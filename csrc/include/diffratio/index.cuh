// Vectors of 16 bytes and how a row is read and written with them. Columns are int, offsets of rows int64_t.
#pragma once

#include <cstring>

#include "portable.cuh"

namespace diffratio::cuda {

template <class I> __host__ __device__ constexpr I ceil_div(I a, I b) { return (a + b - 1) / b; }

template <class T, int n> struct alignas(n * sizeof(T)) Vec {
  T value[n];
};

// The sample that packed row t belongs to, t < offsets[samples]; samples may have no rows.
__device__ __forceinline__ int sample_of(const int32_t* offsets, int64_t samples, int64_t t) {
  int low = 0, high = static_cast<int>(samples) - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (offsets[middle + 1] <= t)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The sample of row `row` of x, which has fewer than 2^31. A division of 64 bits would be a subroutine, and no load
// behind it is issued before it is done.
__device__ __forceinline__ int64_t sample_of_row(int64_t row, int64_t tokens) {
  return static_cast<uint32_t>(row) / static_cast<uint32_t>(tokens);
}

// Elements in 16 bytes.
template <class T> constexpr int kPerVector = 16 / sizeof(T);

template <class T> __device__ __forceinline__ float upcast(T v) { return to_float(v); }

// The upper half of a float. sm_90's conversion would take a slower pipe, and the compiler would hold its
// results in twice the registers instead of repeating a shift.
__device__ __forceinline__ float upcast(bfloat16 v) {
  uint16_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

inline bool aligned(const void* pointer, int64_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// n elements of a row from `column` on, zero from `width` on. With kAligned it is one load, which needs
// column + n <= width.
template <int n, bool kAligned, class T>
__device__ __forceinline__ Vec<T, n> load(const T* row, int column, int width) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const Vec<T, n>*>(row + column);
  } else {
    Vec<T, n> out;
#pragma unroll
    for (int i = 0; i < n; ++i) out.value[i] = column + i < width ? row[column + i] : from_float<T>(0);
    return out;
  }
}

template <int n, bool kAligned, class T>
__device__ __forceinline__ void store(T* row, int column, int width, const Vec<T, n>& values) {
  if constexpr (kAligned) {
    *reinterpret_cast<Vec<T, n>*>(row + column) = values;
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (column + i < width) row[column + i] = values.value[i];
  }
}

// The same for floats that no thread writes during the kernel, so that the compiler may move the loads.
template <int n, bool kAligned>
__device__ __forceinline__ Vec<float, n> load_constant(const float* row, int column, int width) {
  Vec<float, n> out;
#pragma unroll
  for (int i = 0; i < n; i += kAligned ? (n == 2 ? 2 : 4) : 1) {
    if constexpr (kAligned && n == 2) {
      const float2 two = __ldg(reinterpret_cast<const float2*>(row + column));
      out.value[0] = two.x, out.value[1] = two.y;
    } else if constexpr (kAligned) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(row + column + i));
      out.value[i] = four.x, out.value[i + 1] = four.y, out.value[i + 2] = four.z, out.value[i + 3] = four.w;
    } else {
      out.value[i] = column + i < width ? __ldg(row + column + i) : 0.0f;
    }
  }
  return out;
}

}  // namespace diffratio::cuda
