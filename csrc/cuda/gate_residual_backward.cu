#include "diffratio/gate_residual_backward.cuh"

#include "column_sums.h"

namespace diffratio::cuda {

void gate_residual_backward(const GateResidualBackwardArgs& b, Element element, Stream to) {
  const GateResidualArgs& a = b.forward;
  const auto stream = static_cast<cudaStream_t>(to);
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    const auto *grad_out = static_cast<const T*>(b.grad_out), *branch = static_cast<const T*>(a.branch);
    const bool four = a.width % 4 == 0 && all_aligned({grad_out, branch}, 4 * sizeof(T));
    with_bool(a.norm.any(), [&](auto kNormed) {
      if (a.count > 0 && a.width > 0) {
        const RowGrid rows = row_grid<T>(a.count, a.width);
        const bool vectors =
            rows.held && aligned(a.gate) && all_aligned({grad_out, branch, b.grad_branch, a.norm.weight, a.norm.bias});
        with_bool(vectors, [&](auto kAligned) {
          DIFFRATIO_LAUNCH((gate_residual_backward_kernel<T, kAligned.value, kNormed.value>), rows.grid, rows.block,
                           stream, b);
        });
        check(cudaGetLastError(), "gate_residual_backward");
      }
      const GateTerms<T, OfPackedRows, kNormed.value> terms{grad_out, branch, static_cast<int>(a.width), {}, b.stats};
      sum_rows(terms, b.columns, four, stream, "gate_residual_backward sums");
    });
  });
}

}  // namespace diffratio::cuda
