#include "diffratio/two_bin_blend.cuh"

#include "launch.h"

namespace diffratio::cuda {

void two_bin_blend(const TwoBinBlendArgs& b, Element element, Stream stream) {
  const ScatterArgs& a = b.scatter;
  if (a.rows == 0 || a.width == 0) return;
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    const RowGrid rows = row_grid<T>(a.rows, a.width);
    const bool vectors = a.width % kPerVector<T> == 0 && aligned(a.gate) &&
                         all_aligned({a.x, a.hidden, a.branch, a.out});
    with_bool(vectors, [&](auto kAligned) {
      DIFFRATIO_LAUNCH((two_bin_blend_kernel<T, kAligned.value>), rows.grid, rows.block,
                       static_cast<cudaStream_t>(stream), b);
    });
  });
  check(cudaGetLastError(), "two_bin_blend");
}

}  // namespace diffratio::cuda
