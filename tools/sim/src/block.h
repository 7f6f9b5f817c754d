// The state of the block that runs now: what schedule.cpp moves on and report.cpp explains.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "fiber.h"
#include "schedule.h"

namespace diffratio::simulator {

enum class State { kReady, kAtBarrier, kAtWarpCall, kEnded };

struct Thread {
  Fiber fiber;
  State state;
  uint3 index;
  Call call;         // where it waits
  unsigned mask;     // the lanes it waits for
  unsigned source;   // the lane whose value it wants
  uint64_t value;    // what it brings
  uint64_t brought;  // what that lane brought
  unsigned votes;    // lanes (as a mask) or threads (as a count) that brought something other than 0
};

// splitmix64
struct Random {
  uint64_t state;
  uint32_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>(z >> 32);
  }
  template <class T> void shuffle(std::vector<T>& v) {
    for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[next() * uint64_t{i} >> 32]);
  }
};

struct Block {
  std::vector<Thread> threads;
  std::vector<unsigned> queue;  // threads of this round, in the order of their turns
  size_t turn = 0;              // the first of them that has not had its turn
  unsigned current = 0;
  Fiber host;
  Body body{};
  std::exception_ptr failure;
  Random random{};
  uint64_t phase = 0;           // barriers passed
  std::vector<unsigned> warps;  // their order in this phase
  bool one_warp = false;        // in this phase the first warp that can run goes ahead alone
};

// The threads of one warp: fewer than 32 at the end of a block.
struct Warp {
  Thread* thread;
  unsigned lanes;
};

inline Warp warp_from(Block& block, unsigned first) {
  return {&block.threads[first], std::min(kWarp, static_cast<unsigned>(block.threads.size()) - first)};
}

inline bool same_call(const Thread& a, const Thread& b) {
  const auto same = [](const char* s, const char* t) { return s == t || !std::strcmp(s, t); };
  return a.state == b.state && a.call.place.line() == b.call.place.line() && same(a.call.name, b.call.name) &&
         same(a.call.place.file_name(), b.call.place.file_name());
}

// Lanes that wait in the same call as `t` with the same mask.
inline unsigned met(Warp warp, const Thread& t) {
  unsigned there = 0;
  for (unsigned i = 0; i < warp.lanes; ++i)
    if (t.mask >> i & 1u && warp.thread[i].mask == t.mask && same_call(warp.thread[i], t)) there |= 1u << i;
  return there;
}

std::string text(uint3 v);
std::string text(const Thread& t);

// No thread of `block` can go on: says which one waits for which.
[[noreturn]] void report_stuck(Block& block);

}  // namespace diffratio::simulator
