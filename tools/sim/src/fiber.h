// Fibers: stacks of their own within one host thread, each run until it switches to another one by itself.
#pragma once

#include <cstddef>

namespace diffratio::simulator {

// The stack that a fiber runs on (lowest address and size; of the host thread known to ASan only) and where
// it stopped.
struct Fiber {
  void* stopped_at = nullptr;
  const void* stack = nullptr;
  size_t size = 0;
  void* asan_frames = nullptr;
};

constexpr unsigned kMaxFibers = 1024;

// Makes `fiber` one that begins in `entry` on the stack number `number`; `entry` must never return.
void prepare(Fiber& fiber, unsigned number, void (*entry)());

// Leaves `from`, goes on in `to`. A fiber that ends here is never switched to again.
void switch_fiber(Fiber& from, Fiber& to, bool from_ends = false);

// First call in every `entry`.
void entered();

// After fibers were left in mid-kernel: their frames are dead memory from now on.
void forget_stacks();

}  // namespace diffratio::simulator
