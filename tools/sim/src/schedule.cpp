#include "schedule.h"

#include <numeric>

#include "block.h"

namespace diffratio::simulator {
namespace {

Block block;
uint64_t seed = 0, switched = 0, blocks = 0;

Thread& current() { return block.threads[block.current]; }

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
    block.body.call(block.body.kernel);
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

void begin_phase() {
  if (seed == 0) return;
  block.random.shuffle(block.warps);
  block.one_warp = (seed + block.phase++) % 2 == 1;
}

void choose_round() {
  block.turn = 0;
  block.queue.clear();
  for (unsigned warp : block.warps) {
    for (unsigned i = 0; i < warp_from(block, warp * kWarp).lanes; ++i)
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

void release_lanes(Warp warp) {
  for (unsigned lane = 0; lane < warp.lanes; ++lane) {
    const unsigned mask = warp.thread[lane].mask;
    if (warp.thread[lane].state != State::kAtWarpCall || met(warp, warp.thread[lane]) != mask) continue;
    unsigned votes = 0;
    for (unsigned i = 0; i < warp.lanes; ++i)
      if (mask >> i & 1u && warp.thread[i].value != 0) votes |= 1u << i;
    for (unsigned i = 0; i < warp.lanes; ++i) {
      if (!(mask >> i & 1u)) continue;
      warp.thread[i].brought = warp.thread[warp.thread[i].source].value;
      warp.thread[i].votes = votes;
      warp.thread[i].state = State::kReady;
    }
  }
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

void run_block(uint64_t number) {
  ++blocks;
  block.random.state = seed * 0xd1342543de82ef95u + number;
  block.phase = 0;
  std::iota(block.warps.begin(), block.warps.end(), 0u);
  for (unsigned i = 0; i < block.threads.size(); ++i) {
    block.threads[i].state = State::kReady;
    prepare(block.threads[i].fiber, i, run_thread);
  }
  begin_phase();
  for (choose_round(); !block.queue.empty(); choose_round()) {
    run_round();
    for (unsigned first = 0; first < block.threads.size(); first += kWarp)
      release_lanes(warp_from(block, first));
    release_barrier();
  }
  for (const Thread& t : block.threads)
    if (t.state != State::kEnded) report_stuck(block);
}

void check_launch(dim3 grid, dim3 threads) {
  const bool grid_fits = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffffu &&
                         grid.y <= 0xffffu && grid.z <= 0xffffu;
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (!grid_fits || count == 0 || count > kMaxFibers || threads.z > 64)
    throw Error("a GPU refuses this launch: grid " + text({grid.x, grid.y, grid.z}) + ", block " +
                text({threads.x, threads.y, threads.z}));
}

// Blocks by number, x fastest, in the order in which they run.
std::vector<uint64_t> block_order(dim3 grid) {
  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (seed != 0) Random{seed}.shuffle(order);
  return order;
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
  current().mask = mask;
  current().source = source;
  if (!named) {
    current().state = State::kAtWarpCall;
    current().call = call;
    throw Error("lane " + std::to_string(lane_number()) + " reads lane " + std::to_string(source) +
                ", but the mask must name both, block " + text(blockIdx) + ": " + text(current()));
  }
  wait(State::kAtWarpCall, call, value);
  return current().brought;
}

unsigned vote_lanes(Call call, unsigned mask, bool predicate) {
  meet_lanes(call, mask, predicate, lane_number());
  return current().votes;
}

void run_grid(dim3 grid, dim3 threads, Body body) {
  check_launch(grid, threads);
  gridDim = grid;
  blockDim = threads;
  block.body = body;
  block.one_warp = false;
  block.threads.resize(threads.x * threads.y * threads.z);
  block.warps.resize((block.threads.size() + kWarp - 1) / kWarp);
  for (unsigned i = 0; i < block.threads.size(); ++i)
    block.threads[i].index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
  try {
    for (uint64_t b : block_order(grid)) {
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
