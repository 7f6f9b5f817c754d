// Rows by index, a norm without affine, then scale and shift by the row's own sample or group.
#pragma once

#include "arguments.h"
#include "row.cuh"

namespace diffratio::cuda {

// normed[t] = norm(row) * (1 + scale[b]) + shift[b], row = x[index[t]] or x[t], copied to rows[t] or not.
// kPlain: a layer norm, no groups.
template <class T, bool kAligned, bool kPlain>
__global__ void __launch_bounds__(kMaxRowThreads, 4) gather_adaln_kernel(AdalnArgs a) {
  constexpr int n = kPerVector<T>;
  const int64_t t = row_of_thread();
  if (t >= a.count) return;
  const int width = static_cast<int>(a.width);
  const int64_t source = a.index[t], owner = owner_of<kPlain>(a.groups, source, a.tokens);

  const Row<T, kAligned> row(static_cast<const T*>(a.x) + (a.gather ? source : t) * a.width, width);
  T* copy = a.rows ? static_cast<T*>(a.rows) + t * a.width : nullptr;
  T* normed = static_cast<T*>(a.normed) + t * a.width;
  const float* shift = a.shift.values + owner * a.shift.stride;
  const float* scale = a.scale.values + owner * a.scale.stride;

  const Stats stats = norm_stats<kPlain>([&](auto f) { row.each(f); }, width, a.norm, a.eps);
  each_vector<T, kAligned>(width, [&](int v, int column) {
    const Vec<T, n> values = row.at(v, column);
    const Vec<float, n> factor = load_constant<n, kAligned>(scale, column, width);
    const Vec<float, n> offset = load_constant<n, kAligned>(shift, column, width);
    Vec<T, n> out;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float unit = (upcast(values.value[i]) - stats.mean) * stats.rstd;
      out.value[i] = from_float<T>(unit * (1 + factor.value[i]) + offset.value[i]);
    }
    if (copy) store<n, kAligned>(copy, column, width, values);
    store<n, kAligned>(normed, column, width, out);
  });
}

}  // namespace diffratio::cuda
