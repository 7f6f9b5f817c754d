// Moves, selections, comparisons and predicates; and which instructions are arithmetic.
#include <algorithm>

#include "lanes.h"

namespace ptx {

template <class T>
void select(Warp& w, const Instruction& i) {
  T *d = w.lanes<T>(i.out), *a = w.lanes<T>(i.in[0]), *b = w.lanes<T>(i.in[1]);
  u32 p = w.predicate(i.in[2]);
  each_lane(w.mask, [=](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}

#define COMPARISON(name, ...)            \
  struct name {                          \
    template <class T>                   \
    bool operator()(T a, T b) const {    \
      return __VA_ARGS__;                \
    }                                    \
  };
COMPARISON(Equal, a == b)
COMPARISON(NotEqual, a < b || a > b)
COMPARISON(Less, a < b)
COMPARISON(LessEqual, a <= b)
COMPARISON(Greater, a > b)
COMPARISON(GreaterEqual, a >= b)
COMPARISON(EqualOrNan, !(a < b || a > b))
COMPARISON(NotEqualOrNan, a != b)
COMPARISON(LessOrNan, !(a >= b))
COMPARISON(LessEqualOrNan, !(a > b))
COMPARISON(GreaterOrNan, !(a <= b))
COMPARISON(GreaterEqualOrNan, !(a < b))
COMPARISON(Numbers, a == a && b == b)
COMPARISON(SomeNan, a != a || b != b)

enum Logic : u8 { PLAIN, AND, OR, XOR };
// setp.CMP.BOOL p|q, a, b, c:  p = (a CMP b) BOOL c,  q = !(a CMP b) BOOL c
template <class T, class F>
void compare(Warp& w, const Instruction& i) {
  T *a = w.lanes<T>(i.in[0]), *b = w.lanes<T>(i.in[1]);
  u32 found = 0;
  for (int l = 0; l < 32; l++) found |= static_cast<u32>(F()(value(a[l]), value(b[l]))) << l;
  u32 c = i.kind == PLAIN ? 0 : w.predicate(i.in[2]);
  auto with_c = [&](u32 p) { return i.kind == AND ? p & c : i.kind == OR ? p | c : p ^ c; };
  u32 p = with_c(found), q = with_c(~found);
  w.set_predicate(i.out, p);
  if (i.also) w.set_predicate(i.also, q);
}
template <class T>
Execute comparison(const string& name) {
  static const std::map<string, Execute> all = {
      {"eq", compare<T, Equal>},          {"ne", compare<T, NotEqual>},
      {"lt", compare<T, Less>},           {"le", compare<T, LessEqual>},
      {"gt", compare<T, Greater>},        {"ge", compare<T, GreaterEqual>},
      {"lo", compare<T, Less>},           {"ls", compare<T, LessEqual>},
      {"hi", compare<T, Greater>},        {"hs", compare<T, GreaterEqual>},
      {"equ", compare<T, EqualOrNan>},    {"neu", compare<T, NotEqualOrNan>},
      {"ltu", compare<T, LessOrNan>},     {"leu", compare<T, LessEqualOrNan>},
      {"gtu", compare<T, GreaterOrNan>},  {"geu", compare<T, GreaterEqualOrNan>},
      {"num", compare<T, Numbers>},       {"nan", compare<T, SomeNan>},
  };
  return all.at(name);
}

void move_predicate(Warp& w, const Instruction& i) { w.set_predicate(i.out, w.predicate(i.in[0])); }
void invert_predicate(Warp& w, const Instruction& i) {
  w.set_predicate(i.out, ~w.predicate(i.in[0]));
}
template <class F>
void on_predicates(Warp& w, const Instruction& i) {
  w.set_predicate(i.out, F()(w.predicate(i.in[0]), w.predicate(i.in[1])));
}
// {a, b} = c and c = {a, b}
template <class Part, class Whole>
void take_apart(Warp& w, const Instruction& i) {
  Whole* from = w.lanes<Whole>(i.in[0]);
  for (size_t n = 0; n < i.list.size(); n++) {
    Part* to = w.lanes<Part>(i.list[n]);
    each_lane(w.mask, [=](int l) { to[l] = static_cast<Part>(from[l] >> 8 * sizeof(Part) * n); });
  }
}
template <class Part, class Whole>
void put_together(Warp& w, const Instruction& i) {
  Whole all[32] = {}, *to = w.lanes<Whole>(i.out);
  for (size_t n = 0; n < i.list.size(); n++) {
    Part* from = w.lanes<Part>(i.list[n]);
    for (int l = 0; l < 32; l++) all[l] |= static_cast<Whole>(from[l]) << 8 * sizeof(Part) * n;
  }
  each_lane(w.mask, [&](int l) { to[l] = all[l]; });
}
void move32(Warp& w, const Instruction& i) {
  move_register<u32>(w, i);
  if (!w.accumulators.empty()) move_in_flight(w, i.out, i.in[0]);
}

// ---- decoding

static bool decode_predicates(Decoder& d, Form& form, const Operands& operands, Instruction& i) {
  const string& name = form.name();
  if (name == "mov" || name == "not") {
    decode_operands(d, operands, i, {0, 0});
    i.execute = name == "mov" ? move_predicate : invert_predicate;
  } else {
    decode_operands(d, operands, i, {0, 0, 0});
    i.execute = name == "and" ? on_predicates<And> : name == "or" ? on_predicates<Or> : name == "xor" ? on_predicates<Xor> : nullptr;
  }
  return i.execute;
}

static bool decode_move(Decoder& d, const Operands& operands, Instruction& i, Type t) {
  bool apart = operands.at(0).starts_with('{'), together = operands.at(1).starts_with('{');
  if (apart || together) {
    auto parts = elements(operands[apart ? 0 : 1]);
    int bytes = t.bytes() / static_cast<int>(parts.size());
    for (auto& part : parts) i.list.push_back(d.operand(part, bytes));
    (apart ? i.in[0] : i.out) = d.operand(operands[apart ? 1 : 0], t.bytes());
    if (t.bits == 32 && bytes == 2) i.execute = apart ? take_apart<u16, u32> : put_together<u16, u32>;
    if (t.bits == 64 && bytes == 4) i.execute = apart ? take_apart<u32, u64> : put_together<u32, u64>;
    if (t.bits == 64 && bytes == 2) i.execute = apart ? take_apart<u16, u64> : put_together<u16, u64>;
    return i.execute;
  }
  decode_operands(d, operands, i, {t.bytes(), t.bytes()});
  i.execute = t.bits == 16 ? move_register<u16> : t.bits == 32 ? move32 : t.bits == 64 ? move_register<u64> : nullptr;
  return i.execute;
}

static bool decode_compare(Decoder& d, Form& form, const Operands& operands, Instruction& i, Type t) {
  auto results = split(operands.at(0), '|');
  auto relation = form.take_one({"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu",
                                 "gtu", "geu", "num", "nan"});
  auto logic = form.take_one({"and", "or", "xor"});
  if (relation.empty() || logic.empty() != (operands.size() == 3)) return false;
  i.out = d.operand(results[0], 0);
  if (results.size() > 1) i.also = d.operand(results[1], 0);
  i.in[0] = d.operand(operands.at(1), t.bytes());
  i.in[1] = d.operand(operands.at(2), t.bytes());
  if (!logic.empty()) i.in[2] = d.operand(operands.at(3), 0);
  i.kind = logic == "and" ? AND : logic == "or" ? OR : logic == "xor" ? XOR : PLAIN;
  auto make = [&](auto x) -> Execute { return comparison<decltype(x)>(relation); };
  i.execute = t.integer()      ? for_integers(t, make)
              : t.kind == 'h'  ? make(Half{})
              : t.kind == 'y'  ? make(BFloat{})
              : t.bits == 64   ? make(double{})
              : t.kind == 'f'  ? make(float{})
                               : nullptr;
  return i.execute;
}

bool decode_arithmetic(Decoder& d, Form& form, const Operands& operands, Instruction& i) {
  static const vector<string> names = {
      "add", "sub", "mul", "mad", "div", "rem", "neg", "abs", "min", "max", "fma", "sqrt", "rcp", "rsqrt", "ex2", "lg2",
      "sin", "cos", "tanh", "and", "or", "xor", "not", "shl", "shr", "shf", "bfe", "bfi", "popc", "clz", "bfind", "brev",
      "prmt", "lop3", "mov", "setp", "selp"};
  const string& name = form.name();
  if (std::find(names.begin(), names.end(), name) == names.end()) return false;
  Type t = form.take_type();
  if (!t.kind) return false;
  if (name == "setp") return decode_compare(d, form, operands, i, t);
  if (name == "selp") {
    decode_operands(d, operands, i, {t.bytes(), t.bytes(), t.bytes(), 0});
    i.execute = for_bits(t, [](auto x) -> Execute { return select<decltype(x)>; });
    return i.execute;
  }
  if (t.kind == 'p') return decode_predicates(d, form, operands, i);
  if (name == "mov") return decode_move(d, operands, i, t);
  return t.integer() || t.kind == 'S' ? decode_integers(d, form, operands, i, t) : decode_floats(d, form, operands, i, t);
}

}  // namespace ptx
