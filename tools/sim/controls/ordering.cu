// Barriers, warp calls, launches and the order of threads and blocks.
#include "controls.h"

namespace diffratio::controls {
namespace {

__device__ int warp_sum(int value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// Broken: no barrier between what other warps write and its use.
__global__ void block_sum_kernel(bool broken, float* out) {
  DIFFRATIO_SHARED(float, of_warp, kThreads / 32);
  const int sum = warp_sum(threadIdx.x);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = static_cast<float>(sum);
  if (!broken) __syncthreads();
  float total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += of_warp[w];
  out[threadIdx.x] = total;
}

// Broken: no barrier between a read and the write of the next round.
__global__ void rotate_kernel(bool broken, int* out) {
  DIFFRATIO_SHARED(int, row, kThreads);
  int mine = threadIdx.x;
  for (int round = 0; round < 3; ++round) {
    row[threadIdx.x] = mine;
    __syncthreads();
    mine = row[(threadIdx.x + 33) % kThreads];
    if (!broken) __syncthreads();
  }
  out[threadIdx.x] = mine;
}

// Broken: the second warp reads what the first overwrites ten warp calls later. Warps that advance evenly
// hide it; one that runs ahead shows it.
__global__ void uneven_warps_kernel(bool broken, int* out) {
  DIFFRATIO_SHARED(int, total, 1);
  if (threadIdx.x == 0) total[0] = 0;
  __syncthreads();
  int sum = 0;
  for (int call = 0; call < (threadIdx.x < 32 ? 3 : 1); ++call) sum = warp_sum(1);
  const int seen = total[0];
  if (!broken) __syncthreads();
  if (threadIdx.x == 0) total[0] = sum;
  out[threadIdx.x] = threadIdx.x < 32 ? 0 : seen;
}

// Broken: the last block wins.
__global__ void last_block_kernel(bool broken, int* out) { out[broken ? 0 : blockIdx.x] = blockIdx.x; }

__global__ void part_of_a_block_kernel(bool broken, int* out) {
  if (broken && threadIdx.x >= 96) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void two_barriers_kernel(bool broken, int* out) {
  if (broken && threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void part_of_a_warp_kernel(bool broken, int* out) {
  const int lane = threadIdx.x % 32;
  if (lane < 16) out[threadIdx.x] = __shfl_xor_sync(broken ? kAllLanes : 0xffffu, lane, 1);
  __syncthreads();
}

__global__ void ended_lane_kernel(bool broken, int* out) {
  if (broken && threadIdx.x == 7) return;
  out[threadIdx.x] = __popc(__ballot_sync(kAllLanes, 1));
}

__global__ void foreign_lane_kernel(bool broken, int* out) {
  const int lane = threadIdx.x % 32;
  if (lane < 16) out[threadIdx.x] = __shfl_sync(0xffffu, lane, broken ? 20 : 3);
}

__global__ void short_warp_kernel(bool broken, int* out) {
  out[threadIdx.x] = __any_sync(broken || threadIdx.x < 32 ? kAllLanes : 0xffffu, 1);
}

// blockIdx and threadIdx of every thread, in the order of memory.
__global__ void launch_kernel(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned numbers[] = {blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z};
  for (unsigned i = 0; i < 6; ++i)
    out[(block * blockDim.x * blockDim.y * blockDim.z + thread) * 6 + i] = numbers[i];
}

}  // namespace

Floats block_sum(bool broken) { return run<float>(block_sum_kernel, 1, kThreads, broken); }
Ints rotate(bool broken) { return run<int>(rotate_kernel, 1, kThreads, broken); }
Ints uneven_warps(bool broken) { return run<int>(uneven_warps_kernel, 1, 64, broken); }
Ints last_block(bool broken) { return run<int>(last_block_kernel, 64, 1, broken); }
Ints part_of_a_block(bool broken) { return run<int>(part_of_a_block_kernel, 2, kThreads, broken); }
Ints two_barriers(bool broken) { return run<int>(two_barriers_kernel, 2, kThreads, broken); }
Ints part_of_a_warp(bool broken) { return run<int>(part_of_a_warp_kernel, 2, kThreads, broken); }
Ints ended_lane(bool broken) { return run<int>(ended_lane_kernel, 2, kThreads, broken); }
Ints foreign_lane(bool broken) { return run<int>(foreign_lane_kernel, 2, kThreads, broken); }
Ints short_warp(bool broken) { return run<int>(short_warp_kernel, 2, 48, broken); }

Ints launch(const Sizes& grid, const Sizes& block) {
  size_t threads = 6;
  for (unsigned size : grid) threads *= size;
  for (unsigned size : block) threads *= size;
  Ints out(threads, -1);
  const dim3 blocks(grid[0], grid[1], grid[2]), threads_of_block(block[0], block[1], block[2]);
  DIFFRATIO_LAUNCH(launch_kernel, blocks, threads_of_block, nullptr, out.data());
  return out;
}

}  // namespace diffratio::controls
