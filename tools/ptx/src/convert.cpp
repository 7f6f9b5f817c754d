// cvt: between integers and floats of all sizes.
#include <algorithm>

#include "decode.h"

namespace ptx {

enum Rounding : u8 { NEAREST, TO_ZERO, DOWN, UP };
enum Flag : u8 { FTZ = 1, TO_INTEGER = 2, SATURATE = 4 };

static double to_integer(double x, int rounding) {
  switch (rounding) {
    case NEAREST: return std::nearbyint(x);
    case TO_ZERO: return std::trunc(x);
    case DOWN: return std::floor(x);
    default: return std::ceil(x);
  }
}

template <class D, class S>
D converted(S s, int rounding, int flags) {
  if constexpr (!is_float<D> && !is_float<S>) {
    return static_cast<D>(s);
  } else if constexpr (!is_float<D>) {  // what does not fit is the nearest that does; NaN is 0, or 2^63 in 64 bits
    double x = value(s);
    if constexpr (sizeof(S) == 4) x = flags & FTZ ? flushed(s) : s;
    x = to_integer(x, rounding);
    using Limits = std::numeric_limits<D>;
    if (x != x) return sizeof(D) == 8 ? static_cast<D>(1ull << 63) : 0;
    if (x >= static_cast<double>(Limits::max())) return Limits::max();
    if (x <= static_cast<double>(Limits::min())) return Limits::min();
    return static_cast<D>(x);
  } else if constexpr (!is_float<S>) {
    if constexpr (sizeof(D) >= 4) return static_cast<D>(s);
    else if constexpr (sizeof(S) == 8)  // both halves are exact
      return rounded<D>(odd_sum(static_cast<double>(s >> 32), 0x1p32, static_cast<double>(static_cast<u32>(s))));
    else return rounded<D>(static_cast<double>(s));
  } else {
    double x = value(s);
    if constexpr (sizeof(S) == 4) x = flags & FTZ ? flushed(s) : s;
    if (flags & TO_INTEGER) x = to_integer(x, rounding);
    if (flags & SATURATE) x = x > 0 ? std::min(x, 1.0) : 0;  // NaN is 0, too
    D d = rounded<D>(x);
    if constexpr (sizeof(D) == 4) d = flags & FTZ ? flushed(d) : d;
    return d;
  }
}

// Integers of 8 bits live in registers of 16. A register wider than the type is read in its low bits, and written
// with the sign or zeros above.
template <class D, class S>
void convert(Warp& w, const Instruction& i) {
  auto from = [&](auto* s) {
    auto to = [&](auto* d) {
      using In = std::remove_pointer_t<decltype(s)>;
      using Out = std::remove_pointer_t<decltype(d)>;
      each_lane(w.mask, [=, &i](int l) {
        S x;
        if constexpr (std::is_same_v<In, S>) x = s[l];
        else if constexpr (is_float<S>) return;
        else x = static_cast<S>(s[l]);
        D y = converted<D>(x, i.kind, i.flags);
        if constexpr (std::is_same_v<Out, D>) d[l] = y;
        else if constexpr (!is_float<D>) d[l] = static_cast<Out>(y);
      });
    };
    if (i.count == sizeof(D) && sizeof(D) > 1) return to(w.lanes<D>(i.out));
    if (i.count == 2) return to(w.lanes<u16>(i.out));
    if (i.count == 4) return to(w.lanes<u32>(i.out));
    return to(w.lanes<u64>(i.out));
  };
  if (i.number == sizeof(S) && sizeof(S) > 1) return from(w.lanes<S>(i.in[0]));
  if (i.number == 2) return from(w.lanes<u16>(i.in[0]));
  if (i.number == 4) return from(w.lanes<u32>(i.in[0]));
  return from(w.lanes<u64>(i.in[0]));
}

template <class T>
void convert_pair(Warp& w, const Instruction& i) {  // the first operand goes up
  u32* d = w.lanes<u32>(i.out);
  float *high = w.lanes<float>(i.in[0]), *low = w.lanes<float>(i.in[1]);
  each_lane(w.mask, [=](int l) {
    d[l] = static_cast<u32>(rounded<T>(high[l]).bits) << 16 | rounded<T>(low[l]).bits;
  });
}

template <class F>
static Execute for_type(Type t, F make) {
  switch (t.kind) {
    case 'h': return make(Half{});
    case 'y': return make(BFloat{});
    case 'f': return t.bits == 64 ? make(double{}) : make(float{});
    case 's': return t.bits == 8 ? make(i8{}) : t.bits == 16 ? make(i16{}) : t.bits == 32 ? make(i32{}) : make(i64{});
    case 'u': return t.bits == 8 ? make(u8{}) : t.bits == 16 ? make(u16{}) : t.bits == 32 ? make(u32{}) : make(u64{});
  }
  return nullptr;
}

bool decode_convert(Decoder& d, Form& form, const Operands& operands, Instruction& i) {
  if (form.name() != "cvt") return false;
  Type from = form.take_type(), to = form.take_type();
  if (operands.size() == 3) {
    if (!form.take("rn") || from.kind != 'f') return false;
    i.out = d.operand(operands[0], 4);
    i.in[0] = d.operand(operands[1], 4);
    i.in[1] = d.operand(operands[2], 4);
    i.execute = to.kind == 'H' ? convert_pair<Half> : to.kind == 'Y' ? convert_pair<BFloat> : nullptr;
    return i.execute;
  }
  if (operands.size() != 2 || !from.kind || !to.kind) return false;
  auto floating = [](Type t) { return t.kind == 'f' || t.kind == 'h' || t.kind == 'y'; };
  static const std::map<string, Rounding> to_integers = {{"rni", NEAREST}, {"rzi", TO_ZERO}, {"rmi", DOWN}, {"rpi", UP}};
  for (auto& [name, rounding] : to_integers)
    if (form.take(name)) i.kind = rounding, i.flags |= TO_INTEGER;
  if (form.take("ftz")) i.flags |= FTZ;
  if (form.take("sat")) i.flags |= SATURATE;
  if (floating(to)) form.take("rn");
  if (floating(from) && !floating(to) && !(i.flags & TO_INTEGER)) d.error("to an integer, but how?");
  if ((i.flags & SATURATE) && !(floating(to) && floating(from))) return false;
  if ((i.flags & TO_INTEGER) && !floating(from)) return false;
  auto width = [&](const string& name, Type t) {
    Register* r = d.find(name);
    int least = std::max(t.bytes(), 2), own = r ? r->bytes : least;
    if (own < least || (own > least && floating(t))) d.error(name + " has the wrong width");
    return own;
  };
  i.count = static_cast<u8>(width(operands[0], to));
  i.number = width(operands[1], from);
  i.out = d.operand(operands[0], i.count);
  i.in[0] = d.operand(operands[1], static_cast<int>(i.number));
  i.execute = for_type(to, [&](auto x) -> Execute {
    using D = decltype(x);
    return for_type(from, [](auto y) -> Execute { return convert<D, decltype(y)>; });
  });
  return i.execute;
}

}  // namespace ptx
