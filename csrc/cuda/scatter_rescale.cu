#include "diffratio/scatter_rescale.cuh"

#include "rescale.h"

namespace diffratio::cuda {

void scatter_rescale(const ScatterArgs& a, const ScatterMore& more, Element element, Stream stream) {
  if (a.rows == 0 || a.width == 0) return;
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    const RowGrid rows = row_grid<T>(a.rows, a.width);
    const bool vectors = rows.held && aligned(a.gate) &&
                         all_aligned({a.x, a.hidden, a.branch, a.out, more.norm.weight, more.norm.bias});
    with_bool(vectors, [&](auto kAligned) {
      with_rescale(a.rescale, [&](auto mode) {
        with_bool(more.norm.any(), [&](auto kNormed) {
          DIFFRATIO_LAUNCH((scatter_rescale_kernel<T, mode.value, kAligned.value, kNormed.value>), rows.grid, rows.block,
                           static_cast<cudaStream_t>(stream), a, more);
        });
      });
    });
  });
  check(cudaGetLastError(), "scatter_rescale");
}

}  // namespace diffratio::cuda
