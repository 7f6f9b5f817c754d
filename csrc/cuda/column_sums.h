// Launches of column_sums.cuh and group_sums.cuh.
#pragma once

#include "diffratio/column_sums.cuh"
#include "diffratio/group_sums.cuh"
#include "launch.h"

namespace diffratio::cuda {

// `four`: the rows that the terms read may be read four columns at a time.
template <class Terms>
void sum_columns(const Terms& terms, const ColumnSums& a, bool four, cudaStream_t stream, const char* what) {
  const int64_t slices = ceil_div<int64_t>(a.tokens, kSliceTokens), count = Terms::kSums * a.samples * a.width;
  if (count == 0) return;
  with_bool(four, [&](auto vectors) {
    constexpr int kColumns = decltype(vectors)::value ? 4 : 1;
    const int64_t chunks = ceil_div<int64_t>(a.width, kWarp * kColumns), blocks = chunks * slices * a.samples;
    if (blocks > 0)
      DIFFRATIO_LAUNCH((column_sums_kernel<Terms, kColumns>), dim3(static_cast<unsigned>(blocks)), kSliceTokens,
                       stream, terms, a);
  });
  check(cudaGetLastError(), what);
  if (slices == 1) return;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(count, kSliceTokens)));
  DIFFRATIO_LAUNCH(sum_slices_kernel<Terms::kSums>, grid, kSliceTokens, stream, a);
  check(cudaGetLastError(), "sum_slices");
}

template <class Terms>
void sum_groups(const Terms& terms, const ColumnSums& a, bool four, cudaStream_t stream, const char* what) {
  const int64_t slices = ceil_div<int64_t>(a.samples * a.tokens, kWarp * kSumWarps);
  const int64_t count = Terms::kSums * a.groups.count * a.width;
  if (count == 0) return;
  with_bool(four, [&](auto vectors) {
    constexpr int kColumns = decltype(vectors)::value ? 4 : 1;
    const int64_t blocks = ceil_div<int64_t>(a.width, kWarp * kColumns) * slices;
    if (blocks > 0)
      DIFFRATIO_LAUNCH((group_sums_kernel<Terms, kColumns>), dim3(static_cast<unsigned>(blocks)), kSliceTokens, stream,
                       terms, a);
  });
  check(cudaGetLastError(), what);
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(count, kSliceTokens)));
  DIFFRATIO_LAUNCH(sum_groups_kernel<Terms::kSums>, grid, kSliceTokens, stream, a);
  check(cudaGetLastError(), "sum_groups");
}

// By groups where there are some, else by samples.
template <class Terms>
void sum_rows(const Terms& terms, const ColumnSums& a, bool four, cudaStream_t stream, const char* what) {
  const auto sum = a.groups.bounds ? sum_groups<Terms> : sum_columns<Terms>;
  sum(terms, a, four, stream, what);
}

}  // namespace diffratio::cuda
