// Rows by index, layer norm without affine, then scale and shift by the row's own sample.
#pragma once

#include "arguments.h"
#include "row.cuh"

namespace diffratio::cuda {

// normed[t] = LN(row) * (1 + scale[b]) + shift[b], row = x[index[t]] or x[t], copied to rows[t] or not.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads, 4) gather_adaln_kernel(AdalnArgs a) {
  constexpr int n = kPerVector<T>;
  const int64_t t = row_of_thread();
  if (t >= a.count) return;
  const int width = static_cast<int>(a.width);
  const int64_t source = a.index[t], sample = source / a.tokens;

  const Row<T, kAligned> row(static_cast<const T*>(a.x) + (a.gather ? source : t) * a.width, width);
  T* copy = a.rows ? static_cast<T*>(a.rows) + t * a.width : nullptr;
  T* normed = static_cast<T*>(a.normed) + t * a.width;
  const float* shift = a.shift.values + sample * a.shift.stride;
  const float* scale = a.scale.values + sample * a.scale.stride;

  const Stats stats = row_stats(row, width, a.eps);
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
