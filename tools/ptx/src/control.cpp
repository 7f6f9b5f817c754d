// Branches, barriers, fences, and exchanges within a warp.
#include <algorithm>

#include "decode.h"

namespace ptx {

static void nothing(Warp&, const Instruction&) {}
static void trap(Warp& w, const Instruction& i) { w.fail(i, w.first_lane(), "trap"); }
static void branch(Warp& w, const Instruction& i) { w.branch(i.target); }
static void leave(Warp& w, const Instruction&) { w.leave(); }

static void barrier(Warp& w, const Instruction& i) {  // in: number, threads; flags: 1 arrives and goes on
  if (!w.together(i)) return;
  Block& block = *w.block;
  u32 number = w.lanes<u32>(i.in[0])[w.first_lane()], threads = i.in[1] ? w.lanes<u32>(i.in[1])[w.first_lane()] : 0;
  if (number > 15 || threads % 32) w.fail(i, -1, format("barrier %u of %u threads", number, threads));
  if (block.arrived[number] && block.expected[number] != threads)
    w.fail(i, -1, format("%u and %u threads are expected at barrier %u", threads, block.expected[number], number));
  block.expected[number] = threads;
  block.arrived[number] += threads ? 32 : std::popcount(w.alive);
  if (!i.flags) w.barrier = static_cast<int>(number);
}

// ---- within a warp

static u32 members_of(Warp& w, const Instruction& i, Place place) {
  u32* masks = w.lanes<u32>(place);
  u32 members = masks[w.first_lane()];
  for (u32 rest = w.mask; rest; rest &= rest - 1) {
    int l = std::countr_zero(rest);
    if (masks[l] != members) w.fail(i, l, "member masks differ");
    if (!(members >> l & 1)) w.fail(i, l, "is not in its own member mask");
  }
  return members;
}
static void warp_barrier(Warp& w, const Instruction& i) { w.together(i, members_of(w, i, i.in[0])); }

enum Vote : u8 { BALLOT, EVERY, SOME, UNIFORM };
static void vote(Warp& w, const Instruction& i) {
  u32 members = members_of(w, i, i.in[1]);
  if (!w.together(i, members)) return;
  u32 all = w.mask & members, yes = w.predicate(i.in[0]) & all;
  if (i.kind == BALLOT) {
    u32* d = w.lanes<u32>(i.out);
    return each_lane(w.mask, [=](int l) { d[l] = yes; });
  }
  bool answer = i.kind == EVERY ? yes == all : i.kind == SOME ? yes != 0 : yes == all || yes == 0;
  w.set_predicate(i.out, answer ? ALL : 0);
}

enum Shuffle : u8 { FROM_BELOW, FROM_ABOVE, ACROSS, FROM_LANE };
static void shuffle(Warp& w, const Instruction& i) {  // in: value, b, c, members; also: whether in range
  u32 members = members_of(w, i, i.in[3]);
  if (!w.together(i, members)) return;
  u32 *d = w.lanes<u32>(i.out), *a = w.lanes<u32>(i.in[0]), *b = w.lanes<u32>(i.in[1]), *c = w.lanes<u32>(i.in[2]);
  u32 out[32], in_range = 0;
  for (u32 rest = w.mask; rest; rest &= rest - 1) {
    int lane = std::countr_zero(rest), by = b[lane] & 31, segments = c[lane] >> 8 & 31, clamp = c[lane] & 31;
    int bound = (lane & segments) | (clamp & ~segments), from = lane;
    bool inside = false;
    switch (i.kind) {
      case FROM_BELOW: from = lane - by, inside = from >= bound; break;
      case FROM_ABOVE: from = lane + by, inside = from <= bound; break;
      case ACROSS: from = lane ^ by, inside = from <= bound; break;
      case FROM_LANE: from = (lane & segments) | (by & ~segments), inside = from <= bound; break;
    }
    if (!inside) from = lane;
    if (!(w.mask & members & 1u << from)) w.fail(i, lane, format("takes a value of lane %d, which does not take part", from));
    out[lane] = a[from];
    in_range |= static_cast<u32>(inside) << lane;
  }
  each_lane(w.mask, [&](int l) { d[l] = out[l]; });
  if (i.also) w.set_predicate(i.also, in_range);
}

enum Reduction : u8 { ADD, MIN, MAX, AND, OR, XOR };
template <class T>
void reduce(Warp& w, const Instruction& i) {  // redux
  u32 members = members_of(w, i, i.in[1]);
  if (!w.together(i, members)) return;
  T *a = w.lanes<T>(i.in[0]), *d = w.lanes<T>(i.out), all = a[w.first_lane()];
  for (u32 rest = w.mask & (w.mask - 1); rest; rest &= rest - 1) {
    T x = a[std::countr_zero(rest)];
    switch (i.kind) {
      case ADD: all = static_cast<T>(static_cast<u32>(all) + static_cast<u32>(x)); break;
      case MIN: all = std::min(all, x); break;
      case MAX: all = std::max(all, x); break;
      case AND: all &= x; break;
      case OR: all |= x; break;
      case XOR: all ^= x; break;
    }
  }
  each_lane(w.mask, [=](int l) { d[l] = all; });
}
static void active_mask(Warp& w, const Instruction& i) {
  u32 *d = w.lanes<u32>(i.out), mask = w.mask;
  each_lane(w.mask, [=](int l) { d[l] = mask; });
}
static void proxy_fence(Warp& w, const Instruction&) {
  w.proxy_fences++;
  w.proxy_fence_epoch = w.block->shared.epoch();
}

bool decode_control(Decoder& d, Form& form, const Operands& operands, Instruction& i) {
  const string& name = form.name();
  auto is = [&](const char* text) { return name == text; };
  if (is("bra")) {
    form.take("uni");
    d.branch_to(operands.at(0));
    i.execute = branch;
  } else if (is("ret") || is("exit")) {
    i.execute = leave;
  } else if (is("trap")) {
    i.execute = trap;
  } else if (is("membar") || is("prefetch") || is("nanosleep")) {  // memory is one here, and time is none
    while (!form.empty() && !form.take_one({"gl", "cta", "sys", "global", "L1", "L2", "u32"}).empty()) continue;
    i.execute = nothing;
  } else if (is("fence")) {
    bool proxy = form.take("proxy");
    if (proxy && !form.take("async")) return false;
    while (!form.take_one({"acq_rel", "sc", "cta", "gpu", "sys", "shared::cta", "global"}).empty()) continue;
    i.execute = proxy ? proxy_fence : nothing;
  } else if (is("bar") && form.take("warp")) {
    form.take("sync");
    i.in[0] = d.operand(operands.at(0), 4);
    i.execute = warp_barrier;
  } else if (is("bar") || is("barrier")) {
    auto what = form.take_one({"sync", "arrive"});
    if (what.empty() || (is("barrier") && !form.take("aligned"))) return false;
    form.take("cta");
    i.flags = what == "arrive";
    i.in[0] = d.operand(operands.at(0), 4);
    if (operands.size() > 1) i.in[1] = d.operand(operands[1], 4);
    i.execute = barrier;
  } else if (is("vote")) {
    static const std::map<string, Vote> kinds = {{"ballot", BALLOT}, {"all", EVERY}, {"any", SOME}, {"uni", UNIFORM}};
    auto kind = form.take_one({"ballot", "all", "any", "uni"});
    if (kind.empty() || !form.take("sync") || form.take_one({"b32", "pred"}).empty()) return false;
    i.kind = kinds.at(kind);
    i.out = d.operand(operands.at(0), i.kind == BALLOT ? 4 : 0);
    i.in[0] = d.operand(operands.at(1), 0);
    i.in[1] = d.operand(operands.at(2), 4);
    i.execute = vote;
  } else if (is("shfl")) {
    static const std::map<string, Shuffle> kinds = {{"up", FROM_BELOW}, {"down", FROM_ABOVE}, {"bfly", ACROSS}, {"idx", FROM_LANE}};
    auto kind = form.take_one({"up", "down", "bfly", "idx"});
    if (kind.empty() || !form.take("sync") || !form.take("b32")) return false;
    i.kind = kinds.at(kind);
    auto results = split(operands.at(0), '|');
    i.out = d.operand(results[0], 4);
    if (results.size() > 1) i.also = d.operand(results[1], 0);
    for (size_t n = 0; n < 4; n++) i.in[n] = d.operand(operands.at(n + 1), 4);
    i.execute = shuffle;
  } else if (is("redux")) {
    static const std::map<string, Reduction> kinds = {{"add", ADD}, {"min", MIN}, {"max", MAX}, {"and", AND}, {"or", OR}, {"xor", XOR}};
    auto kind = form.take_one({"add", "min", "max", "and", "or", "xor"}), type = form.take_one({"s32", "u32", "b32"});
    if (kind.empty() || type.empty() || !form.take("sync")) return false;
    i.kind = kinds.at(kind);
    i.out = d.operand(operands.at(0), 4);
    i.in[0] = d.operand(operands.at(1), 4);
    i.in[1] = d.operand(operands.at(2), 4);
    i.execute = type == "s32" ? reduce<i32> : reduce<u32>;
  } else if (is("activemask")) {
    form.take("b32");
    i.out = d.operand(operands.at(0), 4);
    i.execute = active_mask;
  }
  return i.execute;
}

}  // namespace ptx
