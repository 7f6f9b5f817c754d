#include "diffratio/row_places.cuh"

#include "launch.h"

namespace diffratio::cuda {

void row_places(const PlacesArgs& a, Stream stream) {
  constexpr int kThreads = 256;
  if (a.count == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(a.count, kThreads)));
  DIFFRATIO_LAUNCH(row_places_kernel, grid, kThreads, static_cast<cudaStream_t>(stream), a);
  check(cudaGetLastError(), "row_places");
}

}  // namespace diffratio::cuda
