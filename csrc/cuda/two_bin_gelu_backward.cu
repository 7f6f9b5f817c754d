#include "diffratio/two_bin_gelu.cuh"

#include "launch.h"

namespace diffratio::cuda {

void two_bin_gelu_backward(const TwoBinGeluBackwardArgs& a, Element element, Stream stream) {
  if (a.bins.rows == 0 || a.width == 0) return;
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    const RowGrid rows = row_grid<T>(a.bins.rows, a.width);
    const bool vectors = a.width % kPerVector<T> == 0 && all_aligned({a.grad, a.pre, a.grad_pre});
    with_bool(vectors, [&](auto kAligned) {
      DIFFRATIO_LAUNCH((two_bin_gelu_backward_kernel<T, kAligned.value>), rows.grid, rows.block,
                       static_cast<cudaStream_t>(stream), a);
    });
  });
  check(cudaGetLastError(), "two_bin_gelu_backward");
}

}  // namespace diffratio::cuda
