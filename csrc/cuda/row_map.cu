#include "diffratio/row_map.cuh"

#include "launch.h"

namespace diffratio::cuda {

void row_map(const PlacesArgs& a, Stream stream) {
  constexpr int kThreads = 256;
  if (a.count == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(a.count, kThreads)));
  DIFFRATIO_LAUNCH(row_map_kernel, grid, kThreads, static_cast<cudaStream_t>(stream), a);
  check(cudaGetLastError(), "row_map");
}

}  // namespace diffratio::cuda
