#include "diffratio/two_bin_blend_backward.cuh"

#include "column_sums.h"
#include "diffratio/scatter_rescale_backward.cuh"

namespace diffratio::cuda {

void two_bin_blend_backward(const TwoBinBlendBackwardArgs& b, Element element, Stream to) {
  const ScatterArgs& a = b.forward.scatter;
  const auto stream = static_cast<cudaStream_t>(to);
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    if (a.rows > 0 && a.width > 0) {
      const RowGrid rows = row_grid<T>(a.rows, a.width);
      const bool vectors =
          a.width % kPerVector<T> == 0 && aligned(a.gate) &&
          all_aligned({b.grad_out, a.x, a.hidden, a.branch, b.grad_x, b.grad_hidden, b.grad_branch});
      with_bool(vectors, [&](auto kAligned) {
        DIFFRATIO_LAUNCH((two_bin_blend_backward_kernel<T, kAligned.value>), rows.grid, rows.block, stream, b);
      });
      check(cudaGetLastError(), "two_bin_blend_backward");
    }
    const auto *grad_out = static_cast<const T*>(b.grad_out), *branch = static_cast<const T*>(a.branch);
    const GateTerms<T, OfScattered, false> terms{grad_out, branch, static_cast<int>(a.width), {a}, nullptr};
    const bool four = a.width % 4 == 0 && all_aligned({b.grad_out, a.branch}, 4 * sizeof(T));
    sum_columns(terms, b.columns, four, stream, "two_bin_blend_backward sums");
  });
}

}  // namespace diffratio::cuda
