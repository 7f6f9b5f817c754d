// Loads, stores, atomics and asynchronous copies.
#include <algorithm>
#include <cstring>

#include "decode.h"

namespace ptx {

enum Space : u8 { GLOBAL, SHARED, PARAMETER, LOCAL };

static u64 address_in(Warp& w, Place base, int bytes, int lane, i64 offset) {
  u64 address = bytes == 4 ? w.lanes<u32>(base)[lane] : w.lanes<u64>(base)[lane];
  return address + static_cast<u64>(offset);
}

static char* locate(Warp& w, const Instruction& i, int lane, u32 bytes) {
  u64 address = address_in(w, i.in[0], i.address_bytes, lane, i.offset);
  Block& block = *w.block;
  switch (i.flags) {
    case SHARED: return block.shared.at(w, i, lane, address, bytes, bytes);
    case PARAMETER:
      if (address + bytes > block.launch.parameters.size()) w.fail(i, lane, "outside of the parameters");
      return const_cast<char*>(block.launch.parameters.data()) + address;
    case LOCAL: return block.global(w, i, lane, address + LOCAL_WINDOW, bytes, bytes);
    default: return block.global(w, i, lane, address, bytes, bytes);
  }
}

template <class F>
static void one_by_one(u32 mask, F f) {
  for (u32 rest = mask; rest; rest &= rest - 1) f(std::countr_zero(rest));
}

// M: in memory; R: the register, which may be wider.
template <class M, class R>
void load(Warp& w, const Instruction& i) {
  u32 bytes = static_cast<u32>(sizeof(M) * i.list.size());
  one_by_one(w.mask, [&](int l) {
    const char* from = locate(w, i, l, bytes);
    if (i.flags == SHARED) w.block->shared.reading(w, i, l, from, bytes);
    for (size_t n = 0; n < i.list.size(); n++) {
      M m;
      std::memcpy(&m, from + n * sizeof(M), sizeof(M));
      w.lanes<R>(i.list[n])[l] = static_cast<R>(m);
    }
  });
}
template <class M, class R>
void store(Warp& w, const Instruction& i) {
  u32 bytes = static_cast<u32>(sizeof(M) * i.list.size());
  one_by_one(w.mask, [&](int l) {
    char* to = locate(w, i, l, bytes);
    M values[8];
    for (size_t n = 0; n < i.list.size(); n++) values[n] = static_cast<M>(w.lanes<R>(i.list[n])[l]);
    if (i.flags == SHARED) w.block->shared.writing(w, i, l, to, bytes, Shared::STORE, values);
    std::memcpy(to, values, bytes);
  });
}

enum Atomic : u8 { ADD, EXCHANGE, COMPARE, MIN, MAX, AND, OR, XOR };
// Programs of one launch may run in several threads of the host; of shared memory only the shadow is to be told.
template <class T>
void atomic(Warp& w, const Instruction& i) {
  one_by_one(w.mask, [&](int l) {
    char* at = locate(w, i, l, sizeof(T));
    if (i.flags == SHARED) w.block->shared.writing(w, i, l, at, sizeof(T), Shared::ATOMIC, nullptr);
    T b = w.lanes<T>(i.in[1])[l], c = i.kind == COMPARE ? w.lanes<T>(i.in[2])[l] : 0;
    T* cell = reinterpret_cast<T*>(at);
    T old = __atomic_load_n(cell, __ATOMIC_RELAXED), made;
    do {
      switch (i.kind) {
        case ADD: made = old + b; break;
        case EXCHANGE: made = b; break;
        case COMPARE: made = old == b ? c : old; break;
        case MIN: made = std::min(old, b); break;
        case MAX: made = std::max(old, b); break;
        case AND: made = old & b; break;
        case OR: made = old | b; break;
        default: made = old ^ b;
      }
    } while (!__atomic_compare_exchange_n(cell, &old, made, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    if (i.out) w.lanes<T>(i.out)[l] = old;
  });
}

// ---- cp.async. count: the size; in: to, from, and bytes of the source; number: the source's offset.

static void copy_async(Warp& w, const Instruction& i) {
  bool late = w.block->late(w.block->launch.copies);
  one_by_one(w.mask, [&](int l) {
    u64 to = address_in(w, i.in[0], i.address_bytes, l, i.offset), from = address_in(w, i.in[1], 8, l, i.number);
    u32 bytes = i.in[2] ? w.lanes<u32>(i.in[2])[l] : i.count;
    char* place = w.block->shared.at(w, i, l, to, i.count, i.count);
    if (bytes > i.count) w.fail(i, l, "more bytes of the source than are copied");
    if (bytes) w.block->global(w, i, l, from, bytes, i.count);
    w.block->shared.writing(w, i, l, place, i.count, Shared::COPY, nullptr);
    u32 offset = static_cast<u32>(place - w.block->shared.data());
    start_copy(w, i, {l, offset, i.count, bytes, from, w.copy_group[l], !late});
  });
}
static void copy_now(Warp& w, const Instruction& i, const Copy& copy) {
  char* to = w.block->shared.data() + copy.to;
  std::memset(to, 0, copy.size);
  if (copy.bytes) std::memcpy(to, w.block->global(w, i, copy.lane, copy.from, copy.bytes, 1), copy.bytes);
}
void start_copy(Warp& w, const Instruction& i, const Copy& copy) {
  if (copy.done) {
    copy_now(w, i, copy);
  } else {
    u16 poison[8];
    std::fill_n(poison, 8, POISON);
    std::memcpy(w.block->shared.data() + copy.to, poison, copy.size);
  }
  w.copies.push_back(copy);
}
void finish_copies(Warp& w, const Instruction& i, u32 keep, bool all) {
  std::erase_if(w.copies, [&](const Copy& copy) {
    if (!(w.mask >> copy.lane & 1)) return false;
    if (!all && copy.group + keep >= w.copy_group[copy.lane]) return false;
    if (!copy.done) copy_now(w, i, copy);
    w.block->shared.copied(copy.to, copy.size);
    return true;
  });
}
static void copy_commit(Warp& w, const Instruction&) {
  one_by_one(w.mask, [&](int l) { w.copy_group[l]++; });
}
static void copy_wait(Warp& w, const Instruction& i) { finish_copies(w, i, static_cast<u32>(i.number), i.flags); }

// cvta: generic addresses of shared and local memory lie in windows of their own.
static void generic_address(Warp& w, const Instruction& i) {
  u64 *to = w.lanes<u64>(i.out), *from = w.lanes<u64>(i.in[0]);
  each_lane(w.mask, [=, &i](int l) { to[l] = from[l] + static_cast<u64>(i.number); });
}

// ---- decoding

template <class M>
static Execute moving(bool loads, int width) {
  if constexpr (sizeof(M) <= 2)
    if (width == 2) return loads ? load<M, u16> : store<M, u16>;
  if constexpr (sizeof(M) <= 4)
    if (width == 4) return loads ? load<M, u32> : store<M, u32>;
  return width == 8 ? loads ? load<M, u64> : store<M, u64> : nullptr;
}

static bool decode_access(Decoder& d, Form& form, const Operands& operands, Instruction& i, Type t) {
  bool loads = form.name() != "st";
  for (auto hint : {"relaxed", "acquire", "release", "weak", "volatile", "cta", "gpu", "sys", "nc", "ca", "cg", "cs", "wb",
                    "wt", "cv", "lu", "L1::no_allocate", "L1::evict_first", "L1::evict_last", "L1::evict_normal"})
    form.take(hint);
  auto count = form.take_one({"v2", "v4", "v8"});
  auto values = elements(operands.at(loads ? 0 : 1));
  if (values.size() != (count.empty() ? 1u : static_cast<size_t>(count[1] - '0'))) d.error("a vector of another size");
  d.address(operands.at(loads ? 1 : 0), i, i.in[0]);
  int width = 0;
  for (auto& name : values) {
    Register* r = d.find(name);
    int own = r ? r->bytes : std::max(t.bytes(), 2);
    if (width && own != width) d.error("registers of different widths");
    width = own;
    i.list.push_back(d.operand(name, own));
  }
  bool s = t.kind == 's';
  switch (t.bits) {
    case 8: i.execute = s ? moving<i8>(loads, width) : moving<u8>(loads, width); break;
    case 16: i.execute = s ? moving<i16>(loads, width) : moving<u16>(loads, width); break;
    case 32: i.execute = s ? moving<i32>(loads, width) : moving<u32>(loads, width); break;
    case 64: i.execute = moving<u64>(loads, width); break;
  }
  return i.execute;
}

static bool decode_atomic(Decoder& d, Form& form, const Operands& operands, Instruction& i, Type t) {
  for (auto hint : {"relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys"}) form.take(hint);
  static const std::map<string, Atomic> kinds = {{"add", ADD}, {"exch", EXCHANGE}, {"cas", COMPARE}, {"min", MIN},
                                                 {"max", MAX}, {"and", AND},       {"or", OR},       {"xor", XOR}};
  auto name = form.take_one({"add", "exch", "cas", "min", "max", "and", "or", "xor"});
  if (name.empty() || !t.integer()) return false;  // sums of floats would depend on the order of programs
  i.kind = kinds.at(name);
  size_t place = form.name() == "atom";
  if (place) i.out = d.operand(operands.at(0), t.bytes());
  d.address(operands.at(place), i, i.in[0]);
  i.in[1] = d.operand(operands.at(place + 1), t.bytes());
  if (i.kind == COMPARE) i.in[2] = d.operand(operands.at(place + 2), t.bytes());
  if (t.bits == 32) i.execute = t.kind == 's' ? atomic<i32> : atomic<u32>;
  if (t.bits == 64) i.execute = t.kind == 's' ? atomic<i64> : atomic<u64>;
  return i.execute;
}

static bool decode_copy(Decoder& d, Form& form, const Operands& operands, Instruction& i) {
  if (!form.take("async")) return false;
  if (form.take("commit_group")) return i.execute = copy_commit, true;
  if (form.take("wait_group")) return i.number = integer(operands.at(0)), i.execute = copy_wait, true;
  if (form.take("wait_all")) return i.flags = 1, i.execute = copy_wait, true;
  bool whole = form.take_one({"cg", "ca"}) == "cg";
  if (form.take_one({"shared", "shared::cta"}).empty() || !form.take("global")) return false;
  form.take_one({"L2::64B", "L2::128B", "L2::256B"});
  d.address(operands.at(1), i, i.in[1]);
  if (i.address_bytes != 8) d.error("a global address has 64 bits");
  i.number = i.offset;
  d.address(operands.at(0), i, i.in[0]);
  i.count = static_cast<u8>(integer(operands.at(2)));
  if (operands.size() > 3) i.in[2] = d.operand(operands[3], 4);
  if (i.count != 16 && (whole || (i.count != 4 && i.count != 8))) d.error("a size that cannot be copied");
  i.execute = copy_async;
  return operands.size() <= 4;
}

bool decode_memory(Decoder& d, Form& form, const Operands& operands, Instruction& i) {
  const string& name = form.name();
  if (name == "cp") return decode_copy(d, form, operands, i);
  if (name != "ld" && name != "ldu" && name != "st" && name != "atom" && name != "red" && name != "cvta") return false;
  auto space = form.take_one({"shared", "shared::cta", "param", "local", "global"});
  i.flags = space.starts_with("shared") ? SHARED : space == "param" ? PARAMETER : space == "local" ? LOCAL : GLOBAL;
  Type t = form.take_type();
  if (name == "cvta") {
    if (t.bits != 64) return false;
    u64 window = i.flags == SHARED ? SHARED_WINDOW : i.flags == LOCAL ? LOCAL_WINDOW : 0;
    i.number = static_cast<i64>(form.take("to") ? 0 - window : window);
    i.out = d.operand(operands.at(0), 8);
    i.in[0] = d.operand(operands.at(1), 8);
    return i.execute = generic_address, true;
  }
  if (!t.kind) return false;
  return name == "atom" || name == "red" ? decode_atomic(d, form, operands, i, t) : decode_access(d, form, operands, i, t);
}

}  // namespace ptx
