// Gradients of qk_norm_rope.cuh. With g the gradient of the normed head, turned back, u = g * weight and n the head
// before weight and bias:  grad_x = rstd * (u - mean(u) - n * mean(u * n)), without mean(u) for rms;  the weight's is
// the sum of g * n, the bias's of g.
#pragma once

#include "heads.cuh"

namespace diffratio::cuda {

// Of one tensor a block has as many heads as threads, or across heads so many rows; it adds up their part of the
// weights' gradients.
constexpr int kSliceHeads = kHeadThreads, kSliceRows = 16;

// The sums of the groups of a block, one after another: to [d].
template <int n>
__device__ __forceinline__ void sum_groups(const float (&sums)[2][n], const Item& item, int width, int lanes,
                                           float* to) {
  DIFFRATIO_SHARED(float, of_group, kHeadThreads * 2 * n);
  const int group = threadIdx.x / lanes, apart = 2 * n * lanes;
  __syncthreads();  // the previous sums have been read
  each_vector(item, [&](int v) {
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (item.column[v] + i < item.end[v]) of_group[group * apart + item.column[v] + i] = sums[v][i];
  });
  __syncthreads();
  for (int column = threadIdx.x; column < width; column += kHeadThreads) {
    float sum = 0;
    for (int at = column; at < kHeadThreads * 2 * n; at += apart) sum += of_group[at];
    to[column] = sum;
  }
}

template <class T, bool kAligned, bool kAcross>
__global__ void __launch_bounds__(kAcross ? kMaxAcrossThreads : kHeadThreads, kAcross ? 1 : 4)
    qk_norm_rope_backward_kernel(QkNormRopeBackwardArgs b, int lanes) {
  constexpr int n = kBackwardVector;
  const QkNormRopeArgs& a = b.forward;
  const bool is_query = blockIdx.y == 0;
  const HeadsArgs of = is_query ? a.query : a.key;
  const HeadsGradients to = is_query ? b.query : b.key;
  const int group = threadIdx.x / lanes, lane = threadIdx.x % lanes, groups = blockDim.x / lanes;
  const int all = a.query.heads + 2 * a.key.heads, before = is_query ? 0 : a.query.heads;
  const int channels = kAcross ? of.heads * a.width : a.width;
  const bool normed = a.norm != Norm::kNone;

  const int64_t slice = blockIdx.x, number = slice * kSliceHeads;
  int t = static_cast<int>(slice * kSliceRows), head = group;
  if constexpr (!kAcross) {
    if (number >= a.count * of.heads) return;
    t = static_cast<int>((number + group) / of.heads);
    head = static_cast<int>((number + group) % of.heads);
  }

  constexpr Item none{{0, 0}, {0, 0}, false};
  Item item = kAcross && head >= of.heads ? none : item_of_lane<n>(a, lane);
  const auto weight_of = [&](const Item& item, int v) -> Vec<float, n> {
    const int at = kAcross ? head * a.width : 0;
    if (!of.weight) return {{1, 1, 1, 1}};
    return load_weight<T, n, kAligned>(of.weight, a.wide_weights, at + item.column[v], at + item.end[v]);
  };
  float weight_sums[2][n] = {}, bias_sums[2][n] = {};
#pragma unroll 1
  for (int round = 0; round < (kAcross ? kSliceRows : lanes); ++round) {
    if (t >= a.count) {
      if constexpr (kAcross) break;
      item = none, t = 0;  // this group has had its heads, others of its warp have not
    }
    const int64_t row = t;
    const Item read = normed ? item : none;
    const Channels<T, n, kAligned> x(static_cast<const T*>(of.x) + row * of.stride + head * a.width, read);
    const Channels<T, n, kAligned> grad(static_cast<const T*>(b.grad) + (row * all + before + head) * a.width, item);
    float g[2][n] = {};
    grad.each(item, [&](int v, int i, float value) { g[v][i] = value; });
    if (a.cos) turn<n, kAligned, true>(g, item, a, place_of(a, a.index[row]), head);

    float mean = 0, rstd = 1, mean_u = 0, mean_un = 0;
    if (normed) {
      mean = mean_of<kAcross>(x, item, a.norm, channels, lanes);
      float sums[3] = {0, 0, 0};  // of squares, of u, of u times the channel
      each_vector(item, [&](int v) {
        const Vec<float, n> weight = weight_of(item, v);
#pragma unroll
        for (int i = 0; i < n; ++i) {
          if (!kAligned && item.column[v] + i >= item.end[v]) break;
          const float value = upcast(x.of[v].value[i]) - mean, u = g[v][i] * weight.value[i];
          sums[0] += value * value;
          sums[1] += u;
          sums[2] += u * value;
        }
      });
      norm_sums<kAcross>(sums, lanes);
      rstd = rsqrtf(sums[0] / channels + a.eps);
      mean_u = a.norm == Norm::kLayer ? sums[1] / channels : 0;
      mean_un = sums[2] * rstd / channels;
    }
    T* grad_x = static_cast<T*>(to.grad_x) + (row * of.heads + head) * a.width;
    each_vector(item, [&](int v) {
      const Vec<float, n> weight = weight_of(item, v);
      Vec<T, n> finished;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float unit = (upcast(x.of[v].value[i]) - mean) * rstd;
        finished.value[i] = from_float<T>(rstd * (g[v][i] * weight.value[i] - mean_u - unit * mean_un));
        weight_sums[v][i] += g[v][i] * unit;
        bias_sums[v][i] += g[v][i];
      }
      store<n, kAligned>(grad_x, item.column[v], item.end[v], finished);
    });

    if constexpr (kAcross) {
      ++t;
    } else {
      for (head += groups; head >= of.heads; head -= of.heads) ++t;
    }
  }

  if constexpr (kAcross) {
    const int64_t at = (slice * of.heads + head) * a.width;
    each_vector(item, [&](int v) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (!kAligned && item.column[v] + i >= item.end[v]) break;
        if (to.weight) to.weight[at + item.column[v] + i] = weight_sums[v][i];
        if (to.bias) to.bias[at + item.column[v] + i] = bias_sums[v][i];
      }
    });
  } else {
    const Item own = item_of_lane<n>(a, lane);
    if (to.weight) sum_groups(weight_sums, own, a.width, lanes, to.weight + slice * a.width);
    if (to.bias) sum_groups(bias_sums, own, a.width, lanes, to.bias + slice * a.width);
  }
}

}  // namespace diffratio::cuda
