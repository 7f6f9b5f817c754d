// Small kernels that are right and, when `broken`, wrong in one way that the simulator must notice; and some
// that show what each CUDA call returns.
#pragma once

#include <cstdint>
#include <vector>

#include "diffratio/portable.cuh"

namespace diffratio::controls {

using Ints = std::vector<int>;
using Floats = std::vector<float>;
using Bits = std::vector<uint16_t>;
using Sizes = std::vector<unsigned>;

constexpr int kThreads = 128;
constexpr unsigned kAllLanes = ~0u;

// Runs kernel(arguments..., out) with one number of `out` for each thread.
template <class T, class K, class... A>
std::vector<T> run(K kernel, unsigned blocks, unsigned threads, A... arguments) {
  std::vector<T> out(blocks * threads, T(-1));
  DIFFRATIO_LAUNCH(kernel, blocks, threads, nullptr, arguments..., out.data());
  return out;
}

// ordering.cu
Floats block_sum(bool broken);
Ints rotate(bool broken);
Ints uneven_warps(bool broken);
Ints last_block(bool broken);
Ints part_of_a_block(bool broken);
Ints two_barriers(bool broken);
Ints part_of_a_warp(bool broken);
Ints ended_lane(bool broken);
Ints foreign_lane(bool broken);
Ints short_warp(bool broken);
Ints launch(const Sizes& grid, const Sizes& block);

// memory.cu
Floats unwritten_shared(bool broken);
Ints beyond_the_end(bool broken);
Ints beyond_shared(bool broken);
Ints beyond_local(bool broken);
Ints misaligned(bool broken);
Ints misaligned_shared(bool broken);
std::vector<int64_t> overflow(bool broken);

// spellings.cu
Ints warp_calls(const Ints& values);            // [calls, 32]
Ints barrier_votes(const Ints& predicates);     // [2, threads]
Ints atomics();                                 // add, max, min, or over 64 threads
Floats from_bits(const Bits& bits, bool is_half);
Bits to_bits(const Floats& values, bool is_half);

}  // namespace diffratio::controls
