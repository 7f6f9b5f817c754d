// Accesses and arithmetic that poison, ASan or UBSan must notice.
#include "controls.h"

namespace diffratio::controls {
namespace {

__global__ void unwritten_shared_kernel(bool broken, float* out) {
  DIFFRATIO_SHARED(float, row, kThreads);
  if (!broken || threadIdx.x != 5 || blockIdx.x == 0) row[threadIdx.x] = 1;
  __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = row[(threadIdx.x + 1) % kThreads];
}

__global__ void beyond_the_end_kernel(bool broken, int* out) { out[threadIdx.x + (broken ? 1 : 0)] = 1; }

// Through a pointer, as a helper function would: bounds of the array itself are a matter for UBSan.
__global__ void beyond_shared_kernel(bool broken, int* out) {
  DIFFRATIO_SHARED(int, row, kThreads);
  int* const first = row;
  first[threadIdx.x + (broken ? 1 : 0)] = 1;
  __syncthreads();
  out[threadIdx.x] = first[threadIdx.x];
}

__global__ void beyond_local_kernel(bool broken, int* out) {
  int held[4] = {1, 1, 1, 1};
  int* const volatile first = held;
  out[threadIdx.x] = first[broken ? 4 : 3];
}

__global__ void misaligned_kernel(const int* row, int* out) {
  out[threadIdx.x] = reinterpret_cast<const int4*>(row)[threadIdx.x].x;
}

template <class T> __global__ void misaligned_shared_kernel(int* out) {
  DIFFRATIO_SHARED(T, row, sizeof(int4) / sizeof(T) * 32);
  int4* const vectors = reinterpret_cast<int4*>(row);
  vectors[threadIdx.x] = make_int4(1, 1, 1, 1);
  out[threadIdx.x] = vectors[threadIdx.x].w;
}

template <class Offset> __global__ void overflow_kernel(Offset row, Offset width, int64_t* out) {
  out[threadIdx.x] = row * width;
}

}  // namespace

Floats unwritten_shared(bool broken) { return run<float>(unwritten_shared_kernel, 2, kThreads, broken); }
Ints beyond_the_end(bool broken) { return run<int>(beyond_the_end_kernel, 1, 32, broken); }
Ints beyond_shared(bool broken) { return run<int>(beyond_shared_kernel, 1, kThreads, broken); }
Ints beyond_local(bool broken) { return run<int>(beyond_local_kernel, 1, 32, broken); }

Ints misaligned(bool broken) {
  const std::vector<int4> memory(33);
  return run<int>(misaligned_kernel, 1, 32, &memory[0].x + (broken ? 1 : 0));
}

Ints misaligned_shared(bool broken) {
  return run<int>(broken ? misaligned_shared_kernel<int> : misaligned_shared_kernel<int4>, 1, 32);
}

std::vector<int64_t> overflow(bool broken) {
  if (broken) return run<int64_t>(overflow_kernel<int>, 1, 32, 600000, 4096);
  return run<int64_t>(overflow_kernel<int64_t>, 1, 32, int64_t{600000}, int64_t{4096});
}

}  // namespace diffratio::controls
