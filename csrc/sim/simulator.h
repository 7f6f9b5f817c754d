// Runs this project's CUDA C++ on a CPU: the very .cuh and .cu files that nvcc compiles, under g++ -std=c++20
// -x c++, with fiber.cpp and schedule.cpp linked in.
//
// Each CUDA thread is a fiber (schedule.h); shared memory is NaN before every block; ASan and UBSan see every
// access. What it proves: indices, masks, barriers, arithmetic, independence of the schedule. What it cannot
// see: weak memory order between blocks, blocks that wait for each other, two threads that update one address
// without an atomic between the same two waits, and time.
#pragma once

#include <cstring>
#include <tuple>

#include "device.h"
#include "float16.h"
#include "schedule.h"
#include "warp.h"

namespace diffratio::simulator {

// A shared array: 0xff bytes (NaN, -1) when the first thread of a block comes to it. It starts at an odd
// multiple of its type's alignment: a wider load is a UBSan report, as nothing promises more on a GPU.
template <class T, size_t n> class Shared {
  static_assert(sizeof(T) * n <= 48 * 1024, "more static shared memory than a block may have");
  struct alignas(2 * alignof(T)) {
    unsigned char before[alignof(T)];
    T data[n];
  } memory_;
  uint64_t block_ = ~uint64_t{0};

 public:
  T (&of_this_block())[n] {
    if (block_ != block_count()) std::memset(static_cast<void*>(memory_.data), 0xff, sizeof memory_.data);
    block_ = block_count();
    return memory_.data;
  }
};

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t, A... arguments) {
  const std::tuple<P...> parameters{static_cast<P>(arguments)...};
  run_grid(grid, block, [&] { std::apply(kernel, parameters); });
}

}  // namespace diffratio::simulator

#define DIFFRATIO_SHARED(T, name, n)                            \
  static ::diffratio::simulator::Shared<T, n> name##_of_kernel; \
  auto& name = name##_of_kernel.of_this_block()
#define DIFFRATIO_LAUNCH(kernel, grid, block, stream, ...) \
  ::diffratio::simulator::launch(kernel, grid, block, stream, __VA_ARGS__)
