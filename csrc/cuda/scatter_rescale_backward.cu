#include "diffratio/scatter_rescale_backward.cuh"

#include "column_sums.h"
#include "rescale.h"

namespace diffratio::cuda {

void scatter_rescale_backward(const ScatterBackwardArgs& b, const ScatterMore& more, Element element, Stream to) {
  const ScatterArgs& a = b.forward;
  const auto stream = static_cast<cudaStream_t>(to);
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    const auto *grad_out = static_cast<const T*>(b.grad_out), *branch = static_cast<const T*>(a.branch);
    const bool four = a.width % 4 == 0 && all_aligned({grad_out, branch}, 4 * sizeof(T));
    with_bool(more.norm.any(), [&](auto kNormed) {
      if (a.rows > 0 && a.width > 0) {
        const RowGrid rows = row_grid<T>(a.rows, a.width);
        const bool vectors = rows.held && aligned(a.gate) &&
                             all_aligned({grad_out, a.x, a.hidden, branch, b.grad_x, b.grad_hidden, b.grad_branch,
                                          more.norm.weight, more.norm.bias});
        with_bool(vectors, [&](auto kAligned) {
          with_rescale(a.rescale, [&](auto mode) {
            DIFFRATIO_LAUNCH((scatter_rescale_backward_kernel<T, mode.value, kAligned.value, kNormed.value>),
                             rows.grid, rows.block, stream, b, more);
          });
        });
        check(cudaGetLastError(), "scatter_rescale_backward");
      }
      const GateTerms<T, OfScattered, kNormed.value> terms{grad_out, branch, static_cast<int>(a.width), {a}, more.stats};
      sum_rows(terms, b.columns, four, stream, "scatter_rescale_backward sums");
    });
  });
}

}  // namespace diffratio::cuda
