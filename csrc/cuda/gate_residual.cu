#include "diffratio/gate_residual.cuh"

#include "launch.h"

namespace diffratio::cuda {

void gate_residual(const GateResidualArgs& a, Element element, Stream stream) {
  if (a.count == 0 || a.width == 0) return;
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    const RowGrid rows = row_grid<T>(a.count, a.width);
    const bool vectors = rows.held && aligned(a.gate) &&
                         all_aligned({a.hidden, a.branch, a.out, a.norm.weight, a.norm.bias});
    with_bool(vectors, [&](auto kAligned) {
      with_bool(a.norm.any(), [&](auto kNormed) {
        DIFFRATIO_LAUNCH((gate_residual_kernel<T, kAligned.value, kNormed.value>), rows.grid, rows.block,
                         static_cast<cudaStream_t>(stream), a);
      });
    });
  });
  check(cudaGetLastError(), "gate_residual");
}

}  // namespace diffratio::cuda
