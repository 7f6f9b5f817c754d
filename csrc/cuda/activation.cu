#include "activation.h"

namespace diffratio::cuda {

void activation(const ActivationArgs& a, Element element, Stream stream) {
  if (a.rows == 0 || a.width == 0) return;
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    const RowGrid rows = row_grid<T>(a.rows, a.width);
    with_bool(vectors_of(a, kPerVector<T>), [&](auto kAligned) {
      with_activation(a.kind, [&](auto kind) {
        DIFFRATIO_LAUNCH((activation_kernel<T, kind.value, kAligned.value>), rows.grid, rows.block,
                         static_cast<cudaStream_t>(stream), a);
      });
    });
  });
  check(cudaGetLastError(), "activation");
}

}  // namespace diffratio::cuda
