// Query and key normed, turned by the place of their token and, with the value, written side by side.
#pragma once

#include "heads.cuh"

namespace diffratio::cuda {

// `lanes` threads have a head: any one of a row without kAcross; with it a block has those of one tensor.
template <class T, bool kAligned, bool kAcross>
__global__ void __launch_bounds__(kAcross ? kMaxAcrossThreads : kHeadThreads, kAcross ? 1 : 4)
    qk_norm_rope_kernel(QkNormRopeArgs a, int lanes) {
  constexpr int n = kPerVector<T>;
  const int group = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const int queries = a.query.heads, keys = a.key.heads, all = queries + 2 * keys;

  int64_t t;
  int part, head;  // query, key or value, and one of its heads
  bool is_there;
  if constexpr (kAcross) {
    t = blockIdx.x / 3, part = blockIdx.x % 3, head = group;
    is_there = head < (part == 0 ? queries : keys);
  } else {
    const int64_t number = static_cast<int64_t>(blockIdx.x) * (kHeadThreads / lanes) + group;
    is_there = number < a.count * all;
    t = is_there ? number / all : 0;
    head = static_cast<int>(is_there ? number - t * all : 0);
    part = head < queries ? 0 : head < queries + keys ? 1 : 2;
    head -= part == 0 ? 0 : part == 1 ? queries : queries + keys;
  }
  const HeadsArgs of = part == 0 ? a.query : part == 1 ? a.key : a.value;
  const Item item = item_of_lane<n>(a, is_there ? lane : kWarp);
  const Channels<T, n, kAligned> x(static_cast<const T*>(of.x) + t * of.stride + head * a.width, item);

  const int64_t index = a.index[t], row = t + (a.shift ? a.shift[sample_of_row(index, a.tokens)] : 0);
  const int before = part == 0 ? 0 : part == 1 ? queries : queries + keys;
  T* out = static_cast<T*>(a.out) + (row * all + before + head) * a.width;
  const int channels = kAcross ? of.heads * a.width : a.width;
  const float mean = mean_of<kAcross>(x, item, a.norm, channels, lanes);
  float rstd = 1;
  if (a.norm != Norm::kNone) {
    float squares[1] = {0};
    x.each(item, [&](int, int, float value) { squares[0] += (value - mean) * (value - mean); });
    norm_sums<kAcross>(squares, lanes);
    rstd = rsqrtf(squares[0] / channels + a.eps);
  }
  if (part == 2) {
    each_vector(item, [&](int v) { store<n, kAligned>(out, item.column[v], item.end[v], x.of[v]); });
    return;
  }

  float values[2][n] = {};
  x.each(item, [&](int v, int i, float value) { values[v][i] = (value - mean) * rstd; });
  const int own = kAcross ? head * a.width : 0;
  each_vector(item, [&](int v) {
    if (of.weight) {
      const Vec<float, n> weight =
          load_weight<T, n, kAligned>(of.weight, a.wide_weights, own + item.column[v], own + item.end[v]);
#pragma unroll
      for (int i = 0; i < n; ++i) values[v][i] *= weight.value[i];
    }
    if (of.bias) {
      const Vec<float, n> bias =
          load_weight<T, n, kAligned>(of.bias, a.wide_weights, own + item.column[v], own + item.end[v]);
#pragma unroll
      for (int i = 0; i < n; ++i) values[v][i] += bias.value[i];
    }
  });
  if (a.cos) turn<n, kAligned, false>(values, item, a, place_of(a, index), head);
  each_vector(item, [&](int v) {
    Vec<T, n> finished;
#pragma unroll
    for (int i = 0; i < n; ++i) finished.value[i] = from_float<T>(values[v][i]);
    store<n, kAligned>(out, item.column[v], item.end[v], finished);
  });
}

}  // namespace diffratio::cuda
