// What CUDA's calls return, for comparison with the same written in Python.
#include "controls.h"

namespace diffratio::controls {
namespace {

__global__ void warp_calls_kernel(const int* values, int* out) {
  const int lane = threadIdx.x, value = values[lane];
  int calls = 0;
  auto put = [&](int result) { out[32 * calls++ + lane] = result; };
  put(__shfl_sync(kAllLanes, value, 5));
  put(__shfl_sync(kAllLanes, value, lane + 3, 8));
  put(__shfl_xor_sync(kAllLanes, value, 9));
  put(__shfl_xor_sync(kAllLanes, value, 9, 8));
  put(__shfl_up_sync(kAllLanes, value, 3));
  put(__shfl_up_sync(kAllLanes, value, 3, 16));
  put(__shfl_down_sync(kAllLanes, value, 3));
  put(__shfl_down_sync(kAllLanes, value, 3, 16));
  put(__ballot_sync(kAllLanes, value > 0));
  put(__any_sync(kAllLanes, value > 1000));
  put(__all_sync(kAllLanes, value <= 1000));
  __syncwarp();
  put(__ballot_sync(lane < 16 ? 0xffffu : 0xffff0000u, value > 0));
}

__global__ void barrier_votes_kernel(const int* predicates, int* out) {
  out[threadIdx.x] = __syncthreads_or(predicates[threadIdx.x]);
  out[blockDim.x + threadIdx.x] = __syncthreads_count(predicates[threadIdx.x]);
}

__global__ void atomics_kernel(int* out) {
  const int t = threadIdx.x;
  atomicAdd(&out[0], t);
  atomicMax(&out[1], t);
  atomicMin(&out[2], t);
  atomicOr(&out[3], 1 << t % 7);
}

template <class T> __global__ void from_bits_kernel(const T* values, float* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = to_float(values[i]);
}

template <class T> __global__ void to_bits_kernel(const float* values, T* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = from_float<T>(values[i]);
}

constexpr unsigned kAtOnce = 256;

template <class T> Floats from_bits_of(const Bits& bits) {
  Floats out(bits.size());
  DIFFRATIO_LAUNCH((from_bits_kernel<T>), bits.size() / kAtOnce, kAtOnce, nullptr,
                   reinterpret_cast<const T*>(bits.data()), out.data());
  return out;
}

template <class T> Bits to_bits_of(const Floats& values) {
  Bits out(values.size());
  DIFFRATIO_LAUNCH((to_bits_kernel<T>), values.size() / kAtOnce, kAtOnce, nullptr, values.data(),
                   reinterpret_cast<T*>(out.data()));
  return out;
}

}  // namespace

Ints warp_calls(const Ints& values) {
  Ints out(12 * 32, -1);
  DIFFRATIO_LAUNCH(warp_calls_kernel, 1, 32, nullptr, values.data(), out.data());
  return out;
}

Ints barrier_votes(const Ints& predicates) {
  Ints out(2 * predicates.size(), -1);
  DIFFRATIO_LAUNCH(barrier_votes_kernel, 1, predicates.size(), nullptr, predicates.data(), out.data());
  return out;
}

Ints atomics() {
  Ints out = {0, 0, 100, 0};
  DIFFRATIO_LAUNCH(atomics_kernel, 1, 64, nullptr, out.data());
  return out;
}

Floats from_bits(const Bits& bits, bool is_half) {
  return is_half ? from_bits_of<half>(bits) : from_bits_of<bfloat16>(bits);
}

Bits to_bits(const Floats& values, bool is_half) {
  return is_half ? to_bits_of<half>(values) : to_bits_of<bfloat16>(values);
}

}  // namespace diffratio::controls
