#include "diffratio/router_logits.cuh"

#include "launch.h"

namespace diffratio::cuda {

// From here on there are warps enough for any GPU with four rows in each.
constexpr int64_t kManyRows = 8192;

void router_logits(const RouterLogitsArgs& a, Element element, Stream stream) {
  if (a.rows == 0) return;
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    const bool vectors = a.width % kPerVector<T> == 0 && all_aligned({a.x, a.weight});
    const auto launch = [&](auto kAligned, auto kRows) {
      const dim3 block(kWarp, kLogitThreads / kWarp);
      const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(a.rows, block.y * kRows.value)));
      DIFFRATIO_LAUNCH((router_logits_kernel<T, kAligned.value, kRows.value>), grid, block,
                       static_cast<cudaStream_t>(stream), a);
    };
    with_bool(vectors, [&](auto kAligned) {
      if (a.rows < kManyRows)
        launch(kAligned, std::integral_constant<int, 1>{});
      else
        launch(kAligned, std::integral_constant<int, 4>{});
    });
  });
  check(cudaGetLastError(), "router_logits");
}

}  // namespace diffratio::cuda
