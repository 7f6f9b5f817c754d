// How a group of lanes holds a head, and the norm and the rotation of its channels.
//
// A lane has one item, two vectors of n channels, in registers. With halves that turn, item i has the channels
// from n i on beside those that they turn with; other items have channels whose pairs, if they turn, are
// neighbours. A result has the same bits in any memory layout: lanes add the same channels in the same order.
#pragma once

#include "arguments.h"
#include "index.cuh"
#include "reduce.cuh"

namespace diffratio::cuda {

constexpr int kHeadThreads = 256, kMaxAcrossThreads = 1024;
constexpr int kBackwardVector = 4;  // the sums of weights need the registers

// The items of a head: those of halves that turn first.
template <int n> struct HeadItems {
  int turning, resting;

  __host__ __device__ explicit HeadItems(const QkNormRopeArgs& a) {
    const int split = a.halves ? a.pairs : 0;
    turning = ceil_div(split, n);
    resting = ceil_div(a.width - 2 * split, 2 * n);
  }

  // A power of two that holds them; more than a warp, and more threads than a block has, are left to other kernels.
  __host__ __device__ int lanes() const {
    int lanes = 1;
    while (lanes < turning + resting) lanes *= 2;
    return lanes;
  }
};

// A vector has the channels from `column` on that are before `end`.
struct Item {
  int column[2], end[2];
  bool turns;  // channel i of one vector with channel i of the other
};

template <int n> __device__ __forceinline__ Item item_of_lane(const QkNormRopeArgs& a, int lane) {
  const HeadItems<n> items(a);
  if (lane < items.turning) return {{n * lane, a.pairs + n * lane}, {a.pairs, 2 * a.pairs}, true};
  const int k = lane - items.turning, first = a.halves ? 2 * a.pairs : 0;
  const int end = k < items.resting ? a.width : 0;
  return {{first + n * k, first + n * (k + items.resting)}, {end, end}, false};
}

// f(v) for the vectors of an item that have channels.
template <class F> __device__ __forceinline__ void each_vector(const Item& item, F f) {
#pragma unroll
  for (int v = 0; v < 2; ++v)
    if (item.column[v] < item.end[v]) f(v);
}

// The row's place in the tables of angles.
__device__ __forceinline__ int64_t place_of(const QkNormRopeArgs& a, int64_t index) {
  return a.table_by_sample ? index : index - sample_of_row(index, a.tokens) * a.tokens;
}

// The channels of an item of one head; zero where it has none.
template <class T, int n, bool kAligned> struct Channels {
  Vec<T, n> of[2] = {};

  __device__ __forceinline__ Channels(const T* head, const Item& item) {
    each_vector(item, [&](int v) { of[v] = load<n, kAligned>(head, item.column[v], item.end[v]); });
  }

  // f(v, i, value)
  template <class F> __device__ __forceinline__ void each(const Item& item, F f) const {
    each_vector(item, [&](int v) {
#pragma unroll
      for (int i = 0; i < n; ++i)
        if (kAligned || item.column[v] + i < item.end[v]) f(v, i, upcast(of[v].value[i]));
    });
  }
};

// Over the lanes of a head or, where the block has a row of heads, over all of them.
template <bool kAcross, int n> __device__ __forceinline__ void norm_sums(float (&sums)[n], int lanes) {
  if constexpr (kAcross)
    row_sums(sums);
  else
    group_sums(sums, lanes);
}

// The mean that a norm takes off.
template <bool kAcross, class X>
__device__ __forceinline__ float mean_of(const X& x, const Item& item, Norm norm, int channels, int lanes) {
  if (norm != Norm::kLayer) return 0;
  float sum[1] = {0};
  x.each(item, [&](int, int, float value) { sum[0] += value; });
  norm_sums<kAcross>(sum, lanes);
  return sum[0] / channels;
}

// Channels of a weight or bias, which is float where it is wide, else of T.
template <class T, int n, bool kAligned>
__device__ __forceinline__ Vec<float, n> load_weight(const void* weight, bool wide, int column, int end) {
  if (wide) return load_constant<n, kAligned>(static_cast<const float*>(weight), column, end);
  const Vec<T, n> narrow = load<n, kAligned>(static_cast<const T*>(weight), column, end);
  Vec<float, n> out;
#pragma unroll
  for (int i = 0; i < n; ++i) out.value[i] = upcast(narrow.value[i]);
  return out;
}

__device__ __forceinline__ void turn_pair(float& x, float& y, float cos, float sin) {
  const float old = x;
  x = old * cos - y * sin;
  y = old * sin + y * cos;
}

// The channels of an item of head `head` turned by the angles of a place, or with kBack against them.
template <int n, bool kAligned, bool kBack>
__device__ __forceinline__ void turn(float (&values)[2][n], const Item& item, const QkNormRopeArgs& a, int64_t place,
                                     int head) {
  const int64_t row = (place * a.table_heads + (a.table_heads > 1 ? head : 0)) * a.pairs;
  const float *cos = a.cos + row, *sin = a.sin + row;
  if (item.turns) {
    const Vec<float, n> c = load_constant<n, kAligned>(cos, item.column[0], a.pairs);
    const Vec<float, n> s = load_constant<n, kAligned>(sin, item.column[0], a.pairs);
#pragma unroll
    for (int i = 0; i < n; ++i)
      turn_pair(values[0][i], values[1][i], c.value[i], kBack ? -s.value[i] : s.value[i]);
  } else if (!a.halves) {
    each_vector(item, [&](int v) {
      const int column = item.column[v];
      if (column >= 2 * a.pairs) return;
      const Vec<float, n / 2> c = load_constant<n / 2, kAligned>(cos, column / 2, a.pairs);
      const Vec<float, n / 2> s = load_constant<n / 2, kAligned>(sin, column / 2, a.pairs);
#pragma unroll
      for (int i = 0; i < n / 2; ++i)
        if (kAligned || column / 2 + i < a.pairs)
          turn_pair(values[v][2 * i], values[v][2 * i + 1], c.value[i], kBack ? -s.value[i] : s.value[i]);
    });
  }
}

}  // namespace diffratio::cuda
