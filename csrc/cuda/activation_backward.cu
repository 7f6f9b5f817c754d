#include "activation.h"

namespace diffratio::cuda {

void activation_backward(const ActivationBackwardArgs& b, Element element, Stream stream) {
  const ActivationArgs& a = b.forward;
  if (a.rows == 0 || a.width == 0) return;
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    const RowGrid rows = row_grid<T>(a.rows, a.width);
    const bool vectors = vectors_of(a, kPerVector<T>) && all_aligned({b.grad, b.grad_gate, b.grad_value});
    with_bool(vectors, [&](auto kAligned) {
      with_activation(a.kind, [&](auto kind) {
        DIFFRATIO_LAUNCH((activation_backward_kernel<T, kind.value, kAligned.value>), rows.grid, rows.block,
                         static_cast<cudaStream_t>(stream), b);
      });
    });
  });
  check(cudaGetLastError(), "activation_backward");
}

}  // namespace diffratio::cuda
