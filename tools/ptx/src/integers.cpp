// Arithmetic and logic on integers and bits.
#include <algorithm>

#include "lanes.h"

namespace ptx {

// Integers wrap.
OPERATION(Add, (T a, T b), static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b))
OPERATION(Subtract, (T a, T b), static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b))
OPERATION(MultiplyLow, (T a, T b), static_cast<u64>(a) * static_cast<u64>(b))
OPERATION(MultiplyHigh, (T a, T b), static_cast<Twice<T>>(a) * static_cast<Twice<T>>(b) >> 8 * sizeof(T))
OPERATION(MultiplyAdd, (T a, T b, T c), static_cast<u64>(a) * static_cast<u64>(b) + static_cast<u64>(c))
OPERATION(MultiplyHighAdd, (T a, T b, T c), static_cast<u64>(MultiplyHigh()(a, b)) + static_cast<u64>(c))
OPERATION(Least, (T a, T b), std::min(a, b))
OPERATION(Greatest, (T a, T b), std::max(a, b))
OPERATION(Negative, (T a), 0 - static_cast<u64>(a))
OPERATION(Magnitude, (T a), a < 0 ? 0 - static_cast<u64>(a) : a)
OPERATION(Not, (T a), ~a)
// What PTX leaves open for a divisor of zero is poison here; the most negative number over -1 wraps.
OPERATION(Divide, (T a, T b), b == 0 ? static_cast<T>(POISON64) : b == static_cast<T>(-1) && std::is_signed_v<T> ? 0 - static_cast<u64>(a) : a / b)
OPERATION(Remainder, (T a, T b), b == 0 ? static_cast<T>(POISON64) : b == static_cast<T>(-1) && std::is_signed_v<T> ? 0 : a % b)
template <class T>
void multiply_wide(Warp& w, const Instruction& i) {  // mul.wide, mad.wide
  using D = Twice<T>;
  D* d = w.lanes<D>(i.out);
  T *a = w.lanes<T>(i.in[0]), *b = w.lanes<T>(i.in[1]);
  if (!i.in[2]) return each_lane(w.mask, [=](int l) { d[l] = static_cast<D>(a[l]) * static_cast<D>(b[l]); });
  D* c = w.lanes<D>(i.in[2]);
  each_lane(w.mask, [=](int l) {
    auto product = static_cast<Unsigned<D>>(static_cast<D>(a[l]) * static_cast<D>(b[l]));
    d[l] = static_cast<D>(product + static_cast<Unsigned<D>>(c[l]));
  });
}
template <class T>
void shift_left(Warp& w, const Instruction& i) {  // a shift by the width or more leaves nothing
  T *d = w.lanes<T>(i.out), *a = w.lanes<T>(i.in[0]);
  u32* by = w.lanes<u32>(i.in[1]);
  each_lane(w.mask, [=](int l) { d[l] = by[l] < 8 * sizeof(T) ? static_cast<T>(static_cast<u64>(a[l]) << by[l]) : 0; });
}
template <class T>
void shift_right(Warp& w, const Instruction& i) {  // or only the sign
  constexpr u32 bits = 8 * sizeof(T);
  T *d = w.lanes<T>(i.out), *a = w.lanes<T>(i.in[0]);
  u32* by = w.lanes<u32>(i.in[1]);
  each_lane(w.mask, [=](int l) {
    if constexpr (std::is_signed_v<T>) d[l] = static_cast<T>(a[l] >> std::min(by[l], bits - 1));
    else d[l] = by[l] < bits ? static_cast<T>(a[l] >> by[l]) : 0;
  });
}
template <class T>
void extract_field(Warp& w, const Instruction& i) {  // bfe
  constexpr u32 bits = 8 * sizeof(T);
  T *d = w.lanes<T>(i.out), *a = w.lanes<T>(i.in[0]);
  u32 *from = w.lanes<u32>(i.in[1]), *length = w.lanes<u32>(i.in[2]);
  each_lane(w.mask, [=](int l) {
    u32 at = from[l] & 0xFF, n = length[l] & 0xFF;
    T shifted = at < bits ? a[l] >> at : std::is_signed_v<T> ? a[l] >> (bits - 1) : 0;
    if (n == 0) d[l] = 0;
    else if (n >= bits) d[l] = shifted;
    else d[l] = static_cast<T>(static_cast<Unsigned<T>>(shifted) << (bits - n)) >> (bits - n);
  });
}
template <class T>
void insert_field(Warp& w, const Instruction& i) {  // bfi: `length` bits of a into b
  constexpr u32 bits = 8 * sizeof(T);
  T *d = w.lanes<T>(i.out), *a = w.lanes<T>(i.in[0]), *b = w.lanes<T>(i.in[1]);
  u32 *to = w.lanes<u32>(i.in[2]), *length = w.lanes<u32>(i.in[3]);
  each_lane(w.mask, [=](int l) {
    u32 at = to[l] & 0xFF, n = length[l] & 0xFF;
    T field = n >= bits ? ~T{0} : static_cast<T>((T{1} << n) - 1);
    d[l] = at >= bits ? b[l] : static_cast<T>((b[l] & ~(field << at)) | (a[l] & field) << at);
  });
}
void permute_bytes(Warp& w, const Instruction& i) {  // prmt
  u32 *d = w.lanes<u32>(i.out), *a = w.lanes<u32>(i.in[0]), *b = w.lanes<u32>(i.in[1]), *c = w.lanes<u32>(i.in[2]);
  each_lane(w.mask, [=](int l) {
    u64 both = static_cast<u64>(b[l]) << 32 | a[l];
    u32 out = 0;
    for (int n = 0; n < 4; n++) {
      u32 which = c[l] >> 4 * n & 15, byte = both >> 8 * (which & 7) & 0xFF;
      if (which & 8) byte = byte & 0x80 ? 0xFF : 0;  // its sign, in all bits
      out |= byte << 8 * n;
    }
    d[l] = out;
  });
}
void logic_of_three(Warp& w, const Instruction& i) {  // lop3: bit 4a + 2b + c of the table
  u32 *d = w.lanes<u32>(i.out), *a = w.lanes<u32>(i.in[0]), *b = w.lanes<u32>(i.in[1]), *c = w.lanes<u32>(i.in[2]);
  each_lane(w.mask, [=](int l) {
    u32 out = 0;
    for (int n = 0; n < 8; n++)
      if (i.number >> n & 1) out |= (n & 4 ? a[l] : ~a[l]) & (n & 2 ? b[l] : ~b[l]) & (n & 1 ? c[l] : ~c[l]);
    d[l] = out;
  });
}
template <bool LEFT, bool WRAP>
void funnel_shift(Warp& w, const Instruction& i) {  // shf: 32 bits of b:a
  u32 *d = w.lanes<u32>(i.out), *a = w.lanes<u32>(i.in[0]), *b = w.lanes<u32>(i.in[1]), *c = w.lanes<u32>(i.in[2]);
  each_lane(w.mask, [=](int l) {
    u32 by = WRAP ? c[l] & 31 : std::min(c[l], 32u);
    u64 both = static_cast<u64>(b[l]) << 32 | a[l];
    d[l] = static_cast<u32>(LEFT ? both << by >> 32 : both >> by);
  });
}
struct CountOnes {
  template <class T>
  u32 operator()(T a) const { return static_cast<u32>(std::popcount(a)); }
};
struct CountLeadingZeros {
  template <class T>
  u32 operator()(T a) const { return static_cast<u32>(std::countl_zero(a)); }
};
struct HighestOne {  // bfind
  template <class T>
  u32 operator()(T a) const { return a ? static_cast<u32>(8 * sizeof(T) - 1 - std::countl_zero(a)) : ALL; }
};
struct ShiftToHighest {  // bfind.shiftamt
  template <class T>
  u32 operator()(T a) const { return a ? static_cast<u32>(std::countl_zero(a)) : ALL; }
};
struct ReverseBits {
  template <class T>
  T operator()(T a) const {
    T out = 0;
    for (u32 n = 0; n < 8 * sizeof(T); n++) out |= (a >> n & 1) << (8 * sizeof(T) - 1 - n);
    return out;
  }
};

// {a, b} = c and c = {a, b}
bool decode_integers(Decoder& d, Form& form, const Operands& operands, Instruction& i, Type t) {
  const string& name = form.name();
  int bytes = t.bytes();
  auto is = [&](const char* text) { return name == text; };
#define INTEGERS(loop, f) for_integers(t, [](auto x) -> Execute { return loop<decltype(x), f>; })
  if (t.kind == 'S') {  // pairs of 16 bits
    decode_operands(d, operands, i, {4, 4, 4});
    i.execute = is("add") ? binary<u32, Both<u16, Add>> : is("sub") ? binary<u32, Both<u16, Subtract>> : nullptr;
  } else if ((is("mul") || is("mad")) && form.take("wide")) {
    if (is("mul")) decode_operands(d, operands, i, {2 * bytes, bytes, bytes});
    else decode_operands(d, operands, i, {2 * bytes, bytes, bytes, 2 * bytes});
    bool s = t.kind == 's';
    if (t.bits == 16) i.execute = s ? multiply_wide<i16> : multiply_wide<u16>;
    if (t.bits == 32) i.execute = s ? multiply_wide<i32> : multiply_wide<u32>;
  } else if (is("mul")) {
    decode_operands(d, operands, i, {bytes, bytes, bytes});
    auto part = form.take_one({"lo", "hi"});
    i.execute = part == "lo" ? INTEGERS(binary, MultiplyLow) : part == "hi" ? INTEGERS(binary, MultiplyHigh) : nullptr;
  } else if (is("mad")) {
    decode_operands(d, operands, i, {bytes, bytes, bytes, bytes});
    auto part = form.take_one({"lo", "hi"});
    i.execute = part == "lo" ? INTEGERS(ternary, MultiplyAdd) : part == "hi" ? INTEGERS(ternary, MultiplyHighAdd) : nullptr;
  } else if (is("neg") || is("abs") || is("not")) {
    decode_operands(d, operands, i, {bytes, bytes});
    auto same = [](auto x, auto f) -> Execute { return unary<decltype(x), decltype(x), decltype(f)>; };
    i.execute = is("neg")   ? for_integers(t, [=](auto x) { return same(x, Negative()); })
                : is("abs") ? for_integers({'s', t.bits}, [=](auto x) { return same(x, Magnitude()); })
                            : for_bits(t, [=](auto x) { return same(x, Not()); });
  } else if (is("add") || is("sub") || is("div") || is("rem") || is("min") || is("max") || is("and") || is("or") || is("xor")) {
    decode_operands(d, operands, i, {bytes, bytes, bytes});
    i.execute = is("add")   ? INTEGERS(binary, Add)
                : is("sub") ? INTEGERS(binary, Subtract)
                : is("div") ? INTEGERS(binary, Divide)
                : is("rem") ? INTEGERS(binary, Remainder)
                : is("min") ? INTEGERS(binary, Least)
                : is("max") ? INTEGERS(binary, Greatest)
                : is("and") ? INTEGERS(binary, And)
                : is("or")  ? INTEGERS(binary, Or)
                            : INTEGERS(binary, Xor);
  } else if (is("shl") || is("shr")) {
    decode_operands(d, operands, i, {bytes, bytes, 4});
    i.execute = is("shl") ? for_bits(t, [](auto x) -> Execute { return shift_left<decltype(x)>; })
                          : for_integers(t, [](auto x) -> Execute { return shift_right<decltype(x)>; });
  } else if (is("bfe") && t.bits >= 32) {
    decode_operands(d, operands, i, {bytes, bytes, 4, 4});
    i.execute = for_integers(t, [](auto x) -> Execute { return extract_field<decltype(x)>; });
  } else if (is("bfi") && t.bits >= 32) {
    decode_operands(d, operands, i, {bytes, bytes, bytes, 4, 4});
    i.execute = t.bits == 32 ? insert_field<u32> : insert_field<u64>;
  } else if ((is("popc") || is("clz") || is("bfind")) && t.kind != 's') {
    decode_operands(d, operands, i, {4, bytes});
    bool narrow = t.bits == 32;
    if (is("popc")) i.execute = narrow ? unary<u32, u32, CountOnes> : unary<u32, u64, CountOnes>;
    else if (is("clz")) i.execute = narrow ? unary<u32, u32, CountLeadingZeros> : unary<u32, u64, CountLeadingZeros>;
    else if (form.take("shiftamt")) i.execute = narrow ? unary<u32, u32, ShiftToHighest> : unary<u32, u64, ShiftToHighest>;
    else i.execute = narrow ? unary<u32, u32, HighestOne> : unary<u32, u64, HighestOne>;
  } else if (is("brev")) {
    decode_operands(d, operands, i, {bytes, bytes});
    i.execute = t.bits == 32 ? unary<u32, u32, ReverseBits> : unary<u64, u64, ReverseBits>;
  } else if (is("prmt")) {
    decode_operands(d, operands, i, {4, 4, 4, 4});
    i.execute = permute_bytes;
  } else if (is("lop3")) {
    i.number = integer(operands.at(4));
    decode_operands(d, {operands.begin(), operands.begin() + 4}, i, {4, 4, 4, 4});
    i.execute = logic_of_three;
  } else if (is("shf")) {
    decode_operands(d, operands, i, {4, 4, 4, 4});
    auto side = form.take_one({"l", "r"}), beyond = form.take_one({"wrap", "clamp"});
    if (side.empty() || beyond.empty()) return false;
    bool left = side == "l", wrap = beyond == "wrap";
    i.execute = left ? wrap ? funnel_shift<true, true> : funnel_shift<true, false>
                     : wrap ? funnel_shift<false, true> : funnel_shift<false, false>;
  }
  return i.execute;
}

}  // namespace ptx
