#include "diffratio/topk_select.cuh"

#include "launch.h"

namespace diffratio::cuda {

template <int kItems, bool kOneTile> void launch_topk(const TopkArgs& a, cudaStream_t stream) {
  const int64_t warps = ceil_div<int64_t>(a.tokens, kItems * kWarp);
  const dim3 grid(static_cast<unsigned>(a.samples));
  const dim3 block(static_cast<unsigned>(std::min<int64_t>(warps * kWarp, kMaxSelectThreads)));
  if (a.keep_small)
    DIFFRATIO_LAUNCH((topk_select_kernel<kItems, 2, kOneTile>), grid, block, stream, a);
  else
    DIFFRATIO_LAUNCH((topk_select_kernel<kItems, 1, kOneTile>), grid, block, stream, a);
}

void topk_select(const TopkArgs& a, Stream to) {
  if (a.samples == 0 || a.tokens == 0) return;
  const auto stream = static_cast<cudaStream_t>(to);
  if (a.tokens <= 4 * kMaxSelectThreads)
    launch_topk<4, true>(a, stream);
  else if (a.tokens <= 16 * kMaxSelectThreads)
    launch_topk<16, true>(a, stream);
  else if (a.tokens <= 32 * kMaxSelectThreads)
    launch_topk<32, true>(a, stream);
  else
    launch_topk<16, false>(a, stream);
  check(cudaGetLastError(), "topk_select");
}

}  // namespace diffratio::cuda
