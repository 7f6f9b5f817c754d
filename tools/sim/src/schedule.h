// Runs a grid on one host thread: blocks one after the other, the threads of a block as fibers.
//
// A thread runs until it waits, at a block barrier or in a warp call, or ends. Seed 0 resumes threads and
// blocks in their natural order. Any other seed draws the order of the blocks, and at every resume the order
// of the threads; in every second phase between two barriers (the others with the next seed) one warp after
// the other runs as far as it can, instead of all warps evenly. A kernel whose result depends on the seed
// depends on an order that a GPU does not promise.
//
// Threads that can never meet (a barrier or a warp call which some of them do not reach) are an Error
// (error.h), thrown by the launch.
#pragma once

#include <cstdint>
#include <source_location>

#include "vector_types.h"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace diffratio::simulator {

using Place = std::source_location;

// One spot of the source where threads wait for each other.
struct Call {
  const char* name;
  Place place;
};

constexpr unsigned kWarp = 32;

void set_seed(uint64_t seed);
uint64_t switches();

// What every thread does: call(kernel).
struct Body {
  void (*call)(const void* kernel);
  const void* kernel;
};

void run_grid(dim3 grid, dim3 block, Body);

// Waits for all threads of the block; returns how many of them came with `predicate`.
int meet_block(Call call, bool predicate);

// Waits for the lanes of `mask`; returns the value brought by lane `source`.
uint64_t meet_lanes(Call call, unsigned mask, uint64_t value, unsigned source);

// Waits for the lanes of `mask`; returns the mask of those that came with `predicate`.
unsigned vote_lanes(Call call, unsigned mask, bool predicate);

// Position of this thread within its block and within its warp, x fastest.
unsigned thread_number();
inline unsigned lane_number() { return thread_number() % kWarp; }

// Number of the block that runs now, counted over all launches.
uint64_t block_count();

}  // namespace diffratio::simulator
