// What an Error says: who waits where, and for whom.
#include <bit>
#include <cstdio>

#include "block.h"

namespace diffratio::simulator {
namespace {

[[noreturn]] void report_lanes(const Thread& waiting, Warp warp) {
  const auto lane = static_cast<unsigned>(std::countr_zero(waiting.mask & ~met(warp, waiting)));
  throw Error("warp call not reached by every lane of its mask, block " + text(blockIdx) + ": " +
              text(waiting) + ", lane " + std::to_string(lane) +
              (lane < warp.lanes ? ": " + text(warp.thread[lane]) : " does not exist"));
}

}  // namespace

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string text(const Thread& t) {
  const std::string who = "thread " + text(t.index);
  if (t.state == State::kEnded) return who + " has ended";
  const std::string where = who + " waits in " + t.call.name + " at " + t.call.place.file_name() + ":" +
                            std::to_string(t.call.place.line());
  if (t.state == State::kAtBarrier) return where;
  char mask[16];
  std::snprintf(mask, sizeof mask, "0x%08x", t.mask);
  return where + " with mask " + mask;
}

// A warp that is stuck may be the reason why a barrier is not reached, so it comes first.
void report_stuck(Block& block) {
  for (unsigned i = 0; i < block.threads.size(); ++i)
    if (block.threads[i].state == State::kAtWarpCall)
      report_lanes(block.threads[i], warp_from(block, i / kWarp * kWarp));
  const auto waiting = std::find_if(block.threads.begin(), block.threads.end(),
                                    [](const Thread& t) { return t.state == State::kAtBarrier; });
  const auto other = std::find_if(block.threads.begin(), block.threads.end(),
                                  [&](const Thread& t) { return !same_call(t, *waiting); });
  throw Error("barrier not reached by every thread of block " + text(blockIdx) + ": " + text(*waiting) +
              ", " + text(*other));
}

}  // namespace diffratio::simulator
