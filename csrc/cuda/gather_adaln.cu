#include "diffratio/gather_adaln.cuh"

#include "launch.h"

namespace diffratio::cuda {

void gather_adaln(const AdalnArgs& a, Element element, Stream stream) {
  if (a.count == 0 || a.width == 0) return;
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    const RowGrid rows = row_grid<T>(a.count, a.width);
    const bool vectors =
        rows.held && aligned(a.shift) && aligned(a.scale) && all_aligned({a.x, a.rows, a.normed});
    with_bool(vectors, [&](auto kAligned) {
      with_bool(!a.groups && a.norm == Norm::kLayer, [&](auto kPlain) {
        DIFFRATIO_LAUNCH((gather_adaln_kernel<T, kAligned.value, kPlain.value>), rows.grid, rows.block,
                         static_cast<cudaStream_t>(stream), a);
      });
    });
  });
  check(cudaGetLastError(), "gather_adaln");
}

}  // namespace diffratio::cuda
