// Which bins hold a packed row, and with which weights (see two_bin.py of the reference).
#pragma once

#include "element.h"

namespace diffratio {
namespace {

// The row of the small bin is row `small` of a tensor of both bins, -1 where the small bin does not hold it.
template <typename A>
struct RowBins {
  A large_weight, small_weight;
  int64_t small;

  A total() const { return small < 0 ? large_weight : A{1}; }
};

template <typename A>
RowBins<A> row_bins(const TwoBins& bins, int64_t sample, int64_t t) {
  const A weight = static_cast<const A*>(bins.weight_large)[sample];
  const int64_t place = t - bins.cu_seqlens_large[sample];
  if (place >= bins.cu_seqlens_small[sample + 1] - bins.cu_seqlens_small[sample]) return {weight, A{0}, -1};
  return {weight, 1 - weight, bins.rows + bins.cu_seqlens_small[sample] + place};
}

}  // namespace
}  // namespace diffratio
