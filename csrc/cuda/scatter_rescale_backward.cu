#include "diffratio/scatter_rescale_backward.cuh"

#include "column_sums.h"
#include "rescale.h"

namespace diffratio::cuda {

void scatter_rescale_backward(const ScatterBackwardArgs& b, const ScatterMore& more, Element element, Stream to) {
  const ScatterArgs& a = b.forward;
  const auto stream = static_cast<cudaStream_t>(to);
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    if (a.rows > 0 && a.width > 0) {
      const RowGrid rows = row_grid<T>(a.rows, a.width);
      const bool vectors =
          rows.held && aligned(a.gate) &&
          all_aligned({b.grad_out, a.x, a.hidden, a.branch, b.grad_x, b.grad_hidden, b.grad_branch, more.norm.weight,
                       more.norm.bias});
      with_bool(vectors, [&](auto kAligned) {
        with_rescale(a.rescale, [&](auto mode) {
          with_bool(more.none(), [&](auto kPlain) {
            DIFFRATIO_LAUNCH((scatter_rescale_backward_kernel<T, mode.value, kAligned.value, kPlain.value>), rows.grid,
                             rows.block, stream, b, more);
          });
        });
      });
      check(cudaGetLastError(), "scatter_rescale_backward");
    }
    const auto *grad_out = static_cast<const T*>(b.grad_out), *branch = static_cast<const T*>(a.branch);
    const bool four = a.width % 4 == 0 && all_aligned({b.grad_out, a.branch}, 4 * sizeof(T));
    const auto sum = [&](const auto& terms) {
      const auto by_kind = b.columns.groups.bounds ? sum_groups<std::decay_t<decltype(terms)>>
                                                   : sum_columns<std::decay_t<decltype(terms)>>;
      by_kind(terms, b.columns, four, stream, "scatter_rescale_backward sums");
    };
    if (more.norm.kind == Norm::kNone) return sum(GateTerms<T>{grad_out, branch, a});
    sum(NormedGateTerms<T>{grad_out, branch, a, more.stats});
  });
}

}  // namespace diffratio::cuda
