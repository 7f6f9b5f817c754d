#include "schedule.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <exception>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

namespace diffratio::simulator {
namespace {

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
  unsigned votes;    // lanes, or number of threads of the block, that brought something other than 0
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

// The block that runs now.
struct Block {
  std::vector<Thread> threads;
  std::vector<unsigned> queue;  // threads of this round, in the order of their turns
  size_t turn = 0;              // the first of them that has not had its turn
  unsigned current = 0;
  Fiber host;
  const std::function<void()>* body = nullptr;
  std::exception_ptr failure;
  Random random{};
  std::vector<unsigned> warps;  // their order in this phase between barriers
  bool one_warp = false;        // in this phase the first warp that can run goes ahead alone
};

Block block;
uint64_t seed = 0, switched = 0, blocks = 0;

Thread& current() { return block.threads[block.current]; }

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string text(const Call& call) {
  return std::string(call.name) + " at " + call.place.file_name() + ":" + std::to_string(call.place.line());
}

std::string text(const Thread& t) {
  const std::string who = "thread " + text(t.index);
  if (t.state == State::kEnded) return who + " has ended";
  const std::string where = who + " waits in " + text(t.call);
  if (t.state == State::kAtBarrier) return where;
  char mask[16];
  std::snprintf(mask, sizeof mask, "0x%08x", t.mask);
  return where + " with mask " + mask;
}

bool same(const char* a, const char* b) { return a == b || !std::strcmp(a, b); }

bool same_call(const Thread& a, const Thread& b) {
  return a.state == b.state && a.call.place.line() == b.call.place.line() && same(a.call.name, b.call.name) &&
         same(a.call.place.file_name(), b.call.place.file_name());
}

// From this thread, which waits or has ended, to the next one of the round, or back to the host.
void give_turn(bool ended) {
  Fiber& from = current().fiber;
  ++switched;
  if (block.failure || block.turn == block.queue.size()) return switch_fiber(from, block.host, ended);
  block.current = block.queue[block.turn++];
  threadIdx = current().index;
  switch_fiber(from, current().fiber, ended);
}

void run_thread() {
  entered();
  try {
    (*block.body)();
  } catch (...) {
    block.failure = std::current_exception();
  }
  current().state = State::kEnded;
  give_turn(true);
}

void wait(State state, const Call& call, uint64_t value) {
  current().state = state;
  current().call = call;
  current().value = value;
  give_turn(false);
}

// Lanes `warp[0..lanes)` that came to the same call as `t` with the same mask.
unsigned met(const Thread* warp, unsigned lanes, const Thread& t) {
  unsigned there = 0;
  for (unsigned i = 0; i < lanes; ++i)
    if (t.mask >> i & 1u && warp[i].mask == t.mask && same_call(warp[i], t)) there |= 1u << i;
  return there;
}

void release_lanes(Thread* warp, unsigned lanes) {
  for (unsigned lane = 0; lane < lanes; ++lane) {
    const unsigned mask = warp[lane].mask;
    if (warp[lane].state != State::kAtWarpCall || met(warp, lanes, warp[lane]) != mask) continue;
    unsigned votes = 0;
    for (unsigned i = 0; i < lanes; ++i)
      if (mask >> i & 1u && warp[i].value != 0) votes |= 1u << i;
    for (unsigned i = 0; i < lanes; ++i) {
      if (!(mask >> i & 1u)) continue;
      warp[i].brought = warp[warp[i].source].value;
      warp[i].votes = votes;
      warp[i].state = State::kReady;
    }
  }
}

void begin_phase() {
  if (seed == 0) return;
  block.random.shuffle(block.warps);
  block.one_warp = block.random.next() & 1u;
}

void release_barrier() {
  unsigned votes = 0;
  for (const Thread& t : block.threads) {
    if (t.state != State::kAtBarrier || !same_call(t, block.threads[0])) return;
    votes += t.value != 0;
  }
  for (Thread& t : block.threads) {
    t.votes = votes;
    t.state = State::kReady;
  }
  begin_phase();
}

unsigned lanes_from(unsigned first) {
  return std::min(kWarp, static_cast<unsigned>(block.threads.size()) - first);
}

void choose_round() {
  block.turn = 0;
  block.queue.clear();
  for (unsigned warp : block.warps) {
    for (unsigned i = 0; i < lanes_from(warp * kWarp); ++i)
      if (block.threads[warp * kWarp + i].state == State::kReady) block.queue.push_back(warp * kWarp + i);
    if (block.one_warp && !block.queue.empty()) break;
  }
  if (seed != 0) block.random.shuffle(block.queue);
}

void run_round() {
  block.current = block.queue[block.turn++];
  threadIdx = current().index;
  ++switched;
  switch_fiber(block.host, current().fiber);
  if (block.failure) std::rethrow_exception(std::exchange(block.failure, nullptr));
}

[[noreturn]] void report_lanes(const Thread& waiting, const Thread* warp, unsigned lanes) {
  const unsigned missing = waiting.mask & ~met(warp, lanes, waiting);
  const unsigned lane = static_cast<unsigned>(std::countr_zero(missing));
  throw Error("warp call not reached by every lane of its mask, block " + text(blockIdx) + ": " + text(waiting) +
              ", lane " + std::to_string(lane) + (lane < lanes ? ": " + text(warp[lane]) : " does not exist"));
}

// No thread can go on. A warp that cannot may be the reason why a barrier is not reached, so it comes first.
[[noreturn]] void report_stuck() {
  for (unsigned i = 0; i < block.threads.size(); ++i)
    if (block.threads[i].state == State::kAtWarpCall) {
      const unsigned first = i / kWarp * kWarp;
      report_lanes(block.threads[i], &block.threads[first], lanes_from(first));
    }
  const auto waiting = std::find_if(block.threads.begin(), block.threads.end(),
                                    [](const Thread& t) { return t.state == State::kAtBarrier; });
  const auto other = std::find_if(block.threads.begin(), block.threads.end(),
                                  [&](const Thread& t) { return !same_call(t, *waiting); });
  throw Error("barrier not reached by every thread of block " + text(blockIdx) + ": " + text(*waiting) + ", " +
              text(*other));
}

void run_block(uint64_t number) {
  ++blocks;
  block.random.state = seed * 0xd1342543de82ef95u + number;
  std::iota(block.warps.begin(), block.warps.end(), 0u);
  for (unsigned i = 0; i < block.threads.size(); ++i) {
    block.threads[i].state = State::kReady;
    prepare(block.threads[i].fiber, i, run_thread);
  }
  begin_phase();
  for (choose_round(); !block.queue.empty(); choose_round()) {
    run_round();
    for (unsigned first = 0; first < block.threads.size(); first += kWarp)
      release_lanes(&block.threads[first], lanes_from(first));
    release_barrier();
  }
  for (const Thread& t : block.threads)
    if (t.state != State::kEnded) report_stuck();
}

void check_launch(dim3 grid, dim3 threads) {
  const bool grid_fits = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 0xffffu &&
                         grid.z <= 0xffffu;
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  const bool block_fits = count > 0 && count <= kMaxFibers && threads.x <= 1024 && threads.z <= 64;
  if (!grid_fits || !block_fits)
    throw Error("a GPU refuses this launch: grid " + text({grid.x, grid.y, grid.z}) + ", block " +
                text({threads.x, threads.y, threads.z}));
}

}  // namespace

void set_seed(uint64_t s) { seed = s; }
uint64_t switches() { return switched; }
uint64_t block_count() { return blocks; }
unsigned thread_number() { return block.current; }

int meet_block(Call call, bool predicate) {
  wait(State::kAtBarrier, call, predicate);
  return static_cast<int>(current().votes);
}

uint64_t meet_lanes(Call call, unsigned mask, uint64_t value, unsigned source) {
  const bool named = mask >> lane_number() & 1u && source < kWarp && mask >> source & 1u;
  current().call = call;
  current().mask = mask;
  current().source = source;
  if (!named) {
    current().state = State::kAtWarpCall;
    throw Error("lane " + std::to_string(source) + " read by lane " + std::to_string(lane_number()) +
                ", but the mask must name both, block " + text(blockIdx) + ": " + text(current()));
  }
  wait(State::kAtWarpCall, call, value);
  return current().brought;
}

unsigned vote_lanes(Call call, unsigned mask, bool predicate) {
  meet_lanes(call, mask, predicate, lane_number());
  return current().votes;
}

void run_grid(dim3 grid, dim3 threads, const std::function<void()>& thread) {
  check_launch(grid, threads);
  gridDim = grid;
  blockDim = threads;
  block.body = &thread;
  block.one_warp = false;
  block.threads.resize(threads.x * threads.y * threads.z);
  block.warps.resize((block.threads.size() + kWarp - 1) / kWarp);
  for (unsigned i = 0; i < block.threads.size(); ++i)
    block.threads[i].index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};

  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (seed != 0) Random{seed}.shuffle(order);
  try {
    for (uint64_t b : order) {
      blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                  static_cast<unsigned>(b / grid.x / grid.y)};
      run_block(b);
    }
  } catch (...) {
    forget_stacks();
    throw;
  }
}

}  // namespace diffratio::simulator
