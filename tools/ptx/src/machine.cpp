// Warps and their divergence, blocks and their barriers, global memory, and a launch.
#include "machine.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

namespace ptx {

void Counts::add(const Counts& other) {
  instructions += other.instructions;
  unfenced += other.unfenced;
  overwritten += other.overwritten;
  moved += other.moved;
}

// ---- a warp: its lanes lie in fragments, each at an instruction of its own. The one that is least far runs, and
// fragments that meet are one again.

void Warp::fail(const Instruction& i, int lane, const string& what) const {
  string who = lane < 0 ? format("warp %d", id) : format("thread %d", id * 32 + lane);
  const u32* program = block->index;
  throw Error(format("%s, PTX line %d: `%.200s`: program (%u, %u, %u), %s: ", block->launch.kernel.name.c_str(), i.line,
                     i.text.c_str(), program[0], program[1], program[2], who.c_str()) + what);
}

static u32 special(const Block& block, const Warp& w, const string& name, u32 lane) {
  const Launch& launch = block.launch;
  u32 thread = static_cast<u32>(w.id) * 32 + lane, axis = static_cast<u32>(name.back() - 'x');
  if (name.starts_with("%tid"))
    return axis == 0 ? thread % launch.block[0]
                     : axis == 1 ? thread / launch.block[0] % launch.block[1] : thread / launch.block[0] / launch.block[1];
  if (name.starts_with("%ntid")) return launch.block[axis];
  if (name.starts_with("%ctaid")) return block.index[axis];
  if (name.starts_with("%nctaid")) return launch.grid[axis];
  if (name == "%laneid") return lane;
  if (name == "%warpid") return static_cast<u32>(w.id);
  u32 below = (1u << lane) - 1, own = 1u << lane;
  if (name == "%lanemask_lt") return below;
  if (name == "%lanemask_le") return below | own;
  if (name == "%lanemask_eq") return own;
  if (name == "%lanemask_ge") return ~below;
  return ~(below | own);  // %lanemask_gt
}

void Warp::start(int count) {
  const Kernel& kernel = block->launch.kernel;
  file = kernel.image;
  std::memset(local.data(), 0x7F, local.size());
  pc = 0;
  alive = active = count == 32 ? ALL : (1u << count) - 1;
  waits = false;
  barrier = -1;
  elsewhere.clear(), copies.clear(), products.clear(), accumulators.clear(), moved.clear();
  std::fill_n(copy_group, 32, 0);
  product_group = products_done = proxy_fences = proxy_fence_epoch = 0;
  registers_fenced = false;
  for (auto& [name, place] : kernel.specials)
    for (u32 lane = 0; lane < 32; lane++) lanes<u32>(place)[lane] = special(*block, *this, name, lane);
}

bool Warp::together(const Instruction& i, u32 members) {
  if (mask == alive || (mask & members) == members) {
    if (members != ALL && members & ~alive) fail(i, -1, "the member mask names threads that have ended");
    return true;
  }
  if (mask != active) fail(i, -1, format("a collective instruction whose predicate only 0x%x of 0x%x hold", mask, alive));
  if (elsewhere.empty()) fail(i, -1, format("a collective instruction for 0x%x with only 0x%x of its threads", members, mask));
  waits = true;
  pc--;
  return false;
}

void Warp::branch(int target) {
  u32 rest = active & ~mask;
  if (!rest) {
    pc = target;
  } else {
    elsewhere.push_back({target, mask, false});
    active = rest;
  }
}

void Warp::leave() {
  alive &= ~mask;
  active &= ~mask;
}

void Warp::choose() {
  if (active) elsewhere.push_back({pc, active, waits});
  vector<Fragment> met;
  for (auto& fragment : elsewhere) {
    auto same = std::find_if(met.begin(), met.end(), [&](auto& other) { return other.pc == fragment.pc; });
    if (same == met.end()) met.push_back(fragment);
    else *same = {fragment.pc, fragment.lanes | same->lanes, false};
  }
  elsewhere = met;
  if (elsewhere.empty()) {
    active = 0;
    return;
  }
  if (elsewhere.size() == 1) elsewhere[0].waits = false;  // the other lanes have ended, or are here
  auto first = elsewhere.end();
  for (auto f = elsewhere.begin(); f != elsewhere.end(); f++)
    if (!f->waits && (first == elsewhere.end() || f->pc < first->pc)) first = f;
  if (first == elsewhere.end()) {
    const auto& code = block->launch.kernel.code;
    string lines;
    for (auto& f : elsewhere) lines += format(" 0x%x at line %d", f.lanes, code[static_cast<size_t>(f.pc)].line);
    fail(code[static_cast<size_t>(elsewhere[0].pc)], -1, "parts of a warp wait for each other:" + lines);
  }
  pc = first->pc, active = first->lanes, waits = false;
  elsewhere.erase(first);
}

// ---- a block

Block::Block(const Launch& given) : launch(given) {
  u32 threads = launch.block[0] * launch.block[1] * launch.block[2];
  if (threads < 1 || threads > 1024) throw Error(format("a block of %u threads", threads));
  shared.resize(launch.kernel.shared_bytes + launch.dynamic_shared, launch.races);
  warps.resize((threads + 31) / 32);
  for (size_t id = 0; id < warps.size(); id++) {
    warps[id].block = this;
    warps[id].id = static_cast<int>(id);
    warps[id].local.resize(32 * launch.kernel.local_bytes);
  }
}

void Block::run(u32 x, u32 y, u32 z) {
  index[0] = x, index[1] = y, index[2] = z;
  random.seed(launch.seed + 7919 * ((z * launch.grid[1] + y) * launch.grid[0] + x));
  shared.poison();
  int threads = static_cast<int>(launch.block[0] * launch.block[1] * launch.block[2]);
  for (auto& w : warps) w.start(std::min(32, threads - 32 * w.id));
  std::fill_n(arrived, 16, 0);
  vector<Warp*> ready;
  for (;;) {
    ready.clear();
    bool ended = true;
    for (auto& w : warps) {
      if (w.alive) ended = false;
      if (w.alive && w.barrier < 0) ready.push_back(&w);
    }
    if (ended) break;
    if (ready.empty()) deadlock();
    turn(*ready[random() % ready.size()], 1 + static_cast<u32>(random()) % launch.turn);
    open_barriers();
  }
  for (auto& w : warps) {
    const Instruction& last = launch.kernel.code.back();
    if (w.products_done != warps[static_cast<size_t>(w.id & ~3)].products_done)
      w.fail(last, -1, "the warps of a warpgroup ran different numbers of wgmma");
    if (!w.products.empty()) w.fail(last, -1, "wgmma in flight at the end of the kernel");
  }
}

void Block::turn(Warp& w, u32 instructions) {
  const Instruction* code = launch.kernel.code.data();
  for (u32 n = 0; n < instructions; n++) {
    const Instruction& i = code[w.pc++];
    u32 mask = w.active;
    if (i.guard) mask &= i.negated ? ~w.predicate(i.guard) : w.predicate(i.guard);
    counts.instructions++;
    if (mask) {
      w.mask = mask;
      i.executed = true;
      i.execute(w, i);
    }
    if (!w.elsewhere.empty()) w.choose();
    if (w.barrier >= 0 || !w.alive) return;
  }
}

void Block::open_barriers() {
  u32 alive = 0;
  for (auto& w : warps) alive += static_cast<u32>(std::popcount(w.alive));
  for (int number = 0; number < 16; number++) {
    if (!arrived[number] || arrived[number] < (expected[number] ? expected[number] : alive)) continue;
    for (auto& w : warps)
      if (w.barrier == number) w.barrier = -1;
    arrived[number] = 0;
    shared.barrier();
  }
}

void Block::deadlock() {
  for (auto& w : warps) {
    if (!w.alive) continue;
    const Instruction& i = launch.kernel.code[static_cast<size_t>(w.pc - 1)];
    w.fail(i, -1, format("deadlock: %u of %u threads are at barrier %d", arrived[w.barrier], expected[w.barrier], w.barrier));
  }
  throw Error("deadlock");
}

char* Block::global(Warp& w, const Instruction& i, int lane, u64 address, u32 bytes, u32 alignment) {
  if (address % alignment)
    w.fail(i, lane, format("misaligned: %u bytes at 0x%llx", alignment, static_cast<unsigned long long>(address)));
  if (address >= last_.begin && address + bytes <= last_.end) return reinterpret_cast<char*>(address);
  if (address >> 56 == LOCAL_WINDOW >> 56) {
    u64 offset = address - LOCAL_WINDOW, each = launch.kernel.local_bytes;
    if (offset + bytes > each) w.fail(i, lane, "outside of local memory");
    return w.local.data() + static_cast<u64>(lane) * each + offset;
  }
  if (address >> 56 == SHARED_WINDOW >> 56) w.fail(i, lane, "shared memory by a generic address is not known");
  const auto& ranges = launch.ranges;
  auto after = std::upper_bound(ranges.begin(), ranges.end(), address, [](u64 a, const Range& r) { return a < r.begin; });
  if (after != ranges.begin() && address + bytes <= (after - 1)->end) {
    last_ = *(after - 1);
    return reinterpret_cast<char*>(address);
  }
  string nearest = "and none is near";
  u64 least = 1ull << 40;
  for (auto& r : ranges) {
    u64 gap = address >= r.end ? address - r.end + 1 : r.begin - address;
    if (address >= r.begin && address < r.end) gap = 0;
    if (gap >= least) continue;
    least = gap;
    nearest = format("%llu bytes %s one of %llu", static_cast<unsigned long long>(gap),
                     gap == 0 ? "are left in" : address >= r.end ? "after" : "before",
                     static_cast<unsigned long long>(r.end - r.begin));
  }
  w.fail(i, lane, format("%u bytes at 0x%llx are in no tensor: ", bytes, static_cast<unsigned long long>(address)) + nearest);
}

// ---- a launch

Counts run(const Launch& launch) {
  u32 programs = launch.grid[0] * launch.grid[1] * launch.grid[2];
  vector<u32> order(programs);
  for (u32 n = 0; n < programs; n++) order[n] = n;
  std::shuffle(order.begin(), order.end(), std::mt19937(launch.seed));
  std::atomic<u32> next = 0;
  std::mutex lock;
  std::exception_ptr failure;
  Counts all;
  auto work = [&] {
    try {
      Block block(launch);
      for (u32 n; (n = next++) < programs;) {
        u32 at = order[n];
        block.run(at % launch.grid[0], at / launch.grid[0] % launch.grid[1], at / launch.grid[0] / launch.grid[1]);
      }
      std::lock_guard hold(lock);
      all.add(block.counts);
    } catch (...) {
      std::lock_guard hold(lock);
      if (!failure) failure = std::current_exception();
      next = programs;
    }
  };
  vector<std::thread> others;
  for (u32 n = 1; n < launch.threads && n < programs; n++) others.emplace_back(work);
  work();
  for (auto& thread : others) thread.join();
  if (failure) std::rethrow_exception(failure);
  return all;
}

}  // namespace ptx
