#include "diffratio/gather_adaln_backward.cuh"

#include "column_sums.h"

namespace diffratio::cuda {

void gather_adaln_backward(const AdalnBackwardArgs& a, Element element, Stream to) {
  const ColumnSums& sizes = a.columns;
  const int64_t rows = a.gather ? sizes.samples * sizes.tokens : a.count;
  const auto stream = static_cast<cudaStream_t>(to);
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    if (rows > 0 && sizes.width > 0) {
      const RowGrid of = row_grid<T>(rows, sizes.width);
      const bool vectors =
          of.held && aligned(a.scale) && all_aligned({a.rows, a.grad_rows, a.grad_normed, a.grad_x});
      with_bool(vectors, [&](auto kAligned) {
        DIFFRATIO_LAUNCH((gather_adaln_backward_kernel<T, kAligned.value>), of.grid, of.block, stream, a);
      });
      check(cudaGetLastError(), "gather_adaln_backward");
    }
    const AdalnTerms<T> terms{static_cast<const T*>(a.rows), static_cast<const T*>(a.grad_normed), a.stats,
                              sizes.width};
    const bool four = sizes.width % 4 == 0 && all_aligned({a.rows, a.grad_normed}, 4 * sizeof(T));
    sum_rows(terms, sizes, four, stream, "gather_adaln_backward sums");
  });
}

}  // namespace diffratio::cuda
