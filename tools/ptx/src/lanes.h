// Loops over the lanes of a warp, for an operation on values.
#pragma once
#include "decode.h"

namespace ptx {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
using Twice = std::conditional_t<
    sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, i64, u64>,
                       std::conditional_t<std::is_signed_v<T>, i32, u32>>>;

#define OPERATION(name, arguments, ...) \
  struct name {                         \
    template <class T>                  \
    T operator() arguments const {      \
      return static_cast<T>(__VA_ARGS__); \
    }                                   \
  };

template <class T, class F>
struct Both {  // halves of 32 bits
  template <class... A>
  u32 operator()(A... a) const {
    u16 low = std::bit_cast<u16>(F()(std::bit_cast<T>(static_cast<u16>(a))...));
    u16 high = std::bit_cast<u16>(F()(std::bit_cast<T>(static_cast<u16>(a >> 16))...));
    return low | static_cast<u32>(high) << 16;
  }
};

template <class D, class A, class F>
void unary(Warp& w, const Instruction& i) {
  D* d = w.lanes<D>(i.out);
  A* a = w.lanes<A>(i.in[0]);
  each_lane(w.mask, [=](int l) { d[l] = F()(a[l]); });
}
template <class T, class F>
void binary(Warp& w, const Instruction& i) {
  T *d = w.lanes<T>(i.out), *a = w.lanes<T>(i.in[0]), *b = w.lanes<T>(i.in[1]);
  each_lane(w.mask, [=](int l) { d[l] = F()(a[l], b[l]); });
}
template <class T, class F>
void ternary(Warp& w, const Instruction& i) {
  T *d = w.lanes<T>(i.out), *a = w.lanes<T>(i.in[0]), *b = w.lanes<T>(i.in[1]), *c = w.lanes<T>(i.in[2]);
  each_lane(w.mask, [=](int l) { d[l] = F()(a[l], b[l], c[l]); });
}

OPERATION(And, (T a, T b), a & b)
OPERATION(Or, (T a, T b), a | b)
OPERATION(Xor, (T a, T b), a ^ b)

// ---- the function for a type

template <class F>
Execute for_integers(Type t, F make) {
  bool s = t.kind == 's';
  switch (t.bits) {
    case 16: return s ? make(i16{}) : make(u16{});
    case 32: return s ? make(i32{}) : make(u32{});
    case 64: return s ? make(i64{}) : make(u64{});
  }
  return nullptr;
}
template <class F>
Execute for_bits(Type t, F make) {
  return for_integers({'b', t.bits}, make);
}

// The operands of an instruction: the result, then what is read; `bytes`: of each.
inline void decode_operands(Decoder& d, const Operands& from, Instruction& i, std::initializer_list<int> bytes) {
  if (from.size() != bytes.size()) d.error(format("%zu operands instead of %zu", from.size(), bytes.size()));
  size_t n = 0;
  for (int each : bytes) {
    (n ? i.in[n - 1] : i.out) = d.operand(from[n], each);
    n++;
  }
}

// Of one operation F on floats: the function for a type. `ftz` is for fp32 alone.
}  // namespace ptx
