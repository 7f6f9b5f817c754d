#include "diffratio/router_logits_backward.cuh"

#include "column_sums.h"

namespace diffratio::cuda {

void router_logits_backward(const RouterLogitsBackwardArgs& a, Element element, Stream to) {
  const ColumnSums& sizes = a.columns;
  const auto stream = static_cast<cudaStream_t>(to);
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    if (sizes.tokens > 0 && sizes.width > 0) {
      const RowGrid rows = row_grid<T>(sizes.tokens, sizes.width);
      with_bool(rows.held && all_aligned({a.weight, a.grad_x}), [&](auto kAligned) {
        DIFFRATIO_LAUNCH((router_logits_backward_kernel<T, kAligned.value>), rows.grid, rows.block, stream, a);
      });
      check(cudaGetLastError(), "router_logits_backward");
    }
    const RouterTerms<T> terms{static_cast<const T*>(a.x), a.grad_logits, sizes.width};
    const bool four = sizes.width % 4 == 0 && aligned(a.x, 4 * sizeof(T));
    sum_columns(terms, sizes, four, stream, "router_logits_backward sums");
  });
}

}  // namespace diffratio::cuda
