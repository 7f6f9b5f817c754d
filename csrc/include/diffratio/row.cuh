// How the threads of a block share a row: thread i has its 16-byte vectors i, i + blockDim.x, ...
//
// blockDim = (threads of a row, rows of a block). Aligned rows of up to kHeld vectors a thread stay in
// registers between two passes; other rows are read again in each pass, element by element, by the same
// threads in the same order, so that a result has the same bits in any memory layout.
#pragma once

#include "arguments.h"
#include "index.cuh"
#include "reduce.cuh"

namespace diffratio::cuda {

// 5 * 32 vectors: 1280 16-bit elements, a row of D = 1152 in one warp.
constexpr int kHeld = 5;
constexpr int kMaxRowThreads = 256;

// The row of this thread among all rows of the grid.
__device__ __forceinline__ int64_t row_of_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}

// f(v, column) for the vectors of this thread; v counts them where they are held.
template <class T, bool kAligned, class F> __device__ __forceinline__ void each_vector(int width, F f) {
  const int first = threadIdx.x * kPerVector<T>, step = blockDim.x * kPerVector<T>;
  if constexpr (kAligned) {
#pragma unroll
    for (int v = 0; v < kHeld; ++v)
      if (first + v * step < width) f(v, first + v * step);
  } else {
    for (int column = first; column < width; column += step) f(0, column);
  }
}

// f(column) for the vectors of this thread, in a row of any width that is read once.
template <class T, class F> __device__ __forceinline__ void each_column(int width, F f) {
  const int step = blockDim.x * kPerVector<T>;
#pragma unroll 1
  for (int column = threadIdx.x * kPerVector<T>; column < width; column += step) f(column);
}

// Columns that each_step has at a time: a vector or, where elements are read one by one, a part of it.
template <class T, bool kAligned> constexpr int kStep = kAligned ? kPerVector<T> : 4;

// f(column) for the steps of a vector.
template <class T, bool kAligned, class F> __device__ __forceinline__ void each_part(int vector, F f) {
#pragma unroll 1
  for (int i = 0; i < kPerVector<T>; i += kStep<T, kAligned>) f(vector + i);
}

// f(column) for the same columns in the same order, step by step: what is held at a time fits into 64 registers.
template <class T, bool kAligned, class F> __device__ __forceinline__ void each_step(int width, F f) {
  each_column<T>(width, [&](int vector) { each_part<T, kAligned>(vector, f); });
}

template <class T, bool kAligned> class Row {
 public:
  static constexpr int n = kPerVector<T>;

  // A row of no width is not read.
  __device__ __forceinline__ Row(const T* row, int width) : row_(row), width_(width) {
    if constexpr (kAligned)
      each_vector<T, true>(width, [&](int v, int column) { held_[v] = load<n, true>(row, column, width); });
  }

  __device__ __forceinline__ Vec<T, n> at(int v, int column) const {
    if constexpr (kAligned)
      return held_[v];
    else
      return load<n, false>(row_, column, width_);
  }

  // f(value) for every element of this thread.
  template <class F> __device__ __forceinline__ void each(F f) const {
    each_vector<T, kAligned>(width_, [&](int v, int column) {
      const Vec<T, n> values = at(v, column);
#pragma unroll
      for (int i = 0; i < n; ++i)
        if (kAligned || column + i < width_) f(upcast(values.value[i]));
    });
  }

 private:
  const T* row_;
  int width_;
  Vec<T, n> held_[kAligned ? kHeld : 1];
};

// Which modulation belongs to row `row` of x.
template <bool kPlain>
__device__ __forceinline__ int64_t owner_of(const int64_t* groups, int64_t row, int64_t tokens) {
  if constexpr (kPlain) return sample_of_row(row, tokens);
  return groups ? groups[row] : sample_of_row(row, tokens);
}

struct Stats {
  float mean, rstd;
};

// Mean, which an rms norm does not take, then the variance around it: E[x^2] - mean^2 would cancel. each(f) calls
// f(value) for every element of this thread. With kPlain of a layer norm.
template <bool kPlain, class Each>
__device__ __forceinline__ Stats norm_stats(Each each, int width, Norm norm, float eps) {
  float mean = 0, squares[1] = {0};
  if (kPlain || norm == Norm::kLayer) {
    float sum[1] = {0};
    each([&](float value) { sum[0] += value; });
    row_sums(sum);
    mean = sum[0] / width;
  }
  each([&](float value) { squares[0] += (value - mean) * (value - mean); });
  row_sums(squares);
  return {mean, rsqrtf(squares[0] / width + eps)};
}

}  // namespace diffratio::cuda
