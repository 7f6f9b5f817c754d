// Runs this project's CUDA C++ on a CPU: the very .cuh and .cu files that nvcc compiles, under g++ -std=c++20
// -x c++, with fiber.cpp, schedule.cpp and report.cpp linked in.
//
// Each CUDA thread is a fiber (schedule.h); shared memory is NaN before every block; ASan and UBSan see every
// access. What it proves: indices, masks, barriers, arithmetic, independence of the schedule. What it cannot
// see: `*at += v` by several threads where an atomic was needed (a thread is not interrupted between two
// waits), weak memory order between blocks, blocks that wait for each other, launch bounds, and time.
#pragma once

#include <cstring>
#include <new>
#include <type_traits>

#include "device.h"
#include "float16.h"
#include "schedule.h"
#include "warp.h"

namespace diffratio::simulator {

// A shared array: 0xff bytes (NaN, -1) when the first thread of a block comes to it. It starts at an odd
// multiple of its type's alignment, as nothing promises more on a GPU: a wider access is a UBSan report. It
// ends where the heap block ends: an access beyond is an ASan report.
template <class T, size_t n> class Shared {
  static_assert(sizeof(T) * n <= 48 * 1024, "more static shared memory than a block may have");

 public:
  T (&of_this_block())[n] {
    if (block_ == block_count()) return *data_;
    if (!data_) {
      void* bytes = ::operator new(alignof(T) + sizeof(T) * n, std::align_val_t{2 * alignof(T)});
      data_ = reinterpret_cast<T(*)[n]>(static_cast<char*>(bytes) + alignof(T));
    }
    block_ = block_count();
    std::memset(static_cast<void*>(data_), 0xff, sizeof *data_);
    return *data_;
  }

 private:
  T (*data_)[n] = nullptr;
  uint64_t block_ = 0;
};

// The arguments are converted to the kernel's parameters as in a launch, then copied for every thread.
template <class... P>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t, std::type_identity_t<P>... arguments) {
  const auto thread = [&] { kernel(arguments...); };
  run_grid(grid, block, {[](const void* t) { (*static_cast<decltype(&thread)>(t))(); }, &thread});
}

}  // namespace diffratio::simulator

#define DIFFRATIO_SHARED(T, name, n)                            \
  static ::diffratio::simulator::Shared<T, n> name##_of_kernel; \
  auto& name = name##_of_kernel.of_this_block()
#define DIFFRATIO_LAUNCH(kernel, grid, block, stream, ...) \
  ::diffratio::simulator::launch(kernel, grid, block, stream, __VA_ARGS__)
