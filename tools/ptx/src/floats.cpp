// Arithmetic on floats.
#include "lanes.h"

namespace ptx {

// fp32 and fp64 in their own arithmetic, 16 bits through odd_sum.
struct FusedMultiplyAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    if constexpr (is_16bit_float<T>) return rounded<T>(odd_sum(value(a), value(b), value(c)));
    else return canonical(std::fma(a, b, c));
  }
};
struct FloatAdd {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (is_16bit_float<T>) return rounded<T>(odd_sum(value(a), 1, value(b)));
    else return canonical(a + b);
  }
};
struct FloatSubtract {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (is_16bit_float<T>) return rounded<T>(odd_sum(value(b), -1, value(a)));
    else return canonical(a - b);
  }
};
struct FloatMultiply {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (is_16bit_float<T>) return rounded<T>(static_cast<double>(value(a)) * value(b));
    else return canonical(a * b);
  }
};
struct FloatDivide {
  template <class T>
  T operator()(T a, T b) const { return canonical(a / b); }
};
struct FusedDown {  // fma.rm: towards minus infinity
  float operator()(float a, float b, float c) const {
    double product = static_cast<double>(a) * b, sum = product + c, of_c = sum - product;
    double lost = (product - (sum - of_c)) + (c - of_c);
    float f = static_cast<float>(sum);
    return canonical(f > sum || (f == sum && lost < 0) ? std::nextafter(f, -INFINITY) : f);
  }
};
// Of a number and NaN the number; -0 is less than +0. With .NaN: NaN.
template <bool LEAST, bool NAN_WINS>
struct Extreme {
  template <class T>
  T operator()(T a, T b) const {
    auto x = value(a), y = value(b);
    if (x != x || y != y) {
      if (NAN_WINS || (x != x && y != y)) return rounded<T>(std::numeric_limits<double>::quiet_NaN());
      return x != x ? b : a;
    }
    bool first = x < y || (x == y && std::signbit(x));
    return first == LEAST ? a : b;
  }
};
template <class T>
constexpr auto sign_bit() {
  if constexpr (sizeof(T) == 2) return u16{0x8000};
  else if constexpr (sizeof(T) == 4) return 0x80000000u;
  else return 1ull << 63;
}
struct FloatNegative {
  template <class T>
  T operator()(T a) const {
    using Bits = decltype(sign_bit<T>());
    return std::bit_cast<T>(static_cast<Bits>(std::bit_cast<Bits>(a) ^ sign_bit<T>()));
  }
};
struct FloatMagnitude {
  template <class T>
  T operator()(T a) const {
    using Bits = decltype(sign_bit<T>());
    return std::bit_cast<T>(static_cast<Bits>(std::bit_cast<Bits>(a) & ~sign_bit<T>()));
  }
};

// What a GPU approximates is right here to the last bit or nearly so, and with `noise` off by what PTX allows.
struct Exp2 {  // Taylor's sum on [-1/2, 1/2] in fp64, in a form that compilers vectorize
  float operator()(float x) const {
    double v = x > 130 ? 130.0 : x < -160 ? -160.0 : static_cast<double>(x);
    double whole = (v + 0x1.8p52) - 0x1.8p52, r = (v - whole) * 0.693147180559945309417, sum = 1;
    for (int n = 12; n >= 1; n--) sum = 1 + sum * r / n;
    u64 exponent = static_cast<u64>(static_cast<i64>(whole) + 1023) << 52;
    return x != x ? canonical(x) : static_cast<float>(sum * std::bit_cast<double>(exponent));
  }
};
OPERATION(Log2, (T a), canonical(static_cast<T>(std::log2(static_cast<double>(a)))))
OPERATION(Reciprocal, (T a), canonical(static_cast<T>(1 / static_cast<double>(a))))
OPERATION(ReciprocalRoot, (T a), canonical(static_cast<T>(1 / std::sqrt(static_cast<double>(a)))))
OPERATION(Root, (T a), canonical(std::sqrt(a)))
OPERATION(Sine, (T a), canonical(static_cast<T>(std::sin(static_cast<double>(a)))))
OPERATION(Cosine, (T a), canonical(static_cast<T>(std::cos(static_cast<double>(a)))))
OPERATION(Tangent, (T a), canonical(static_cast<T>(std::tanh(static_cast<double>(a)))))

template <class F>
struct Flushed {
  template <class... A>
  float operator()(A... a) const {
    return flushed(F()(flushed(a)...));
  }
};

// The relative error that PTX allows is 2^-(millis / 1000).
template <Execute exact, int millis>
void approximate(Warp& w, const Instruction& i) {
  exact(w, i);
  if (!w.block->launch.noise) return;
  static const double most = std::exp2(-millis / 1000.0);
  float* d = w.lanes<float>(i.out);
  each_lane(w.mask, [&](int l) {
    double part = static_cast<i32>(w.block->random()) * 0x1p-31;
    d[l] = static_cast<float>(d[l] * (1 + part * most));
  });
}

// Of one operation F on floats: the function for a type. `ftz` is for fp32 alone.
template <class F>
Execute float_unary(Type t, bool ftz) {
  switch (t.kind) {
    case 'f': return t.bits == 64 ? unary<double, double, F> : ftz ? unary<float, float, Flushed<F>> : unary<float, float, F>;
    case 'h': return unary<Half, Half, F>;
    case 'y': return unary<BFloat, BFloat, F>;
    case 'H': return unary<u32, u32, Both<Half, F>>;
    case 'Y': return unary<u32, u32, Both<BFloat, F>>;
  }
  return nullptr;
}
template <class F>
Execute float_binary(Type t, bool ftz) {
  switch (t.kind) {
    case 'f': return t.bits == 64 ? binary<double, F> : ftz ? binary<float, Flushed<F>> : binary<float, F>;
    case 'h': return binary<Half, F>;
    case 'y': return binary<BFloat, F>;
    case 'H': return binary<u32, Both<Half, F>>;
    case 'Y': return binary<u32, Both<BFloat, F>>;
  }
  return nullptr;
}

bool decode_floats(Decoder& d, Form& form, const Operands& operands, Instruction& i, Type t) {
  const string& name = form.name();
  int bytes = t.bytes();
  bool single = t.kind == 'f' && t.bits == 32, wide = t.kind == 'f';
  bool ftz = form.take("ftz");
  if (ftz && !single) d.error(".ftz is for f32");
  auto is = [&](const char* text) { return name == text; };
  if (is("neg") || is("abs")) {
    decode_operands(d, operands, i, {bytes, bytes});
    i.execute = is("neg") ? float_unary<FloatNegative>(t, ftz) : float_unary<FloatMagnitude>(t, ftz);
  } else if (is("min") || is("max")) {
    decode_operands(d, operands, i, {bytes, bytes, bytes});
    bool nan = form.take("NaN");
    i.execute = is("min") ? nan ? float_binary<Extreme<true, true>>(t, ftz) : float_binary<Extreme<true, false>>(t, ftz)
                          : nan ? float_binary<Extreme<false, true>>(t, ftz) : float_binary<Extreme<false, false>>(t, ftz);
  } else if (is("add") || is("sub") || is("mul")) {
    decode_operands(d, operands, i, {bytes, bytes, bytes});
    form.take("rn");
    i.execute = is("add")   ? float_binary<FloatAdd>(t, ftz)
                : is("sub") ? float_binary<FloatSubtract>(t, ftz)
                            : float_binary<FloatMultiply>(t, ftz);
  } else if (is("fma")) {
    decode_operands(d, operands, i, {bytes, bytes, bytes, bytes});
    if (single && !ftz && form.take("rm")) return i.execute = ternary<float, FusedDown>, true;
    form.take("rn");
    using F = FusedMultiplyAdd;
    switch (t.kind) {
      case 'f': i.execute = t.bits == 64 ? ternary<double, F> : ftz ? ternary<float, Flushed<F>> : ternary<float, F>; break;
      case 'h': i.execute = ternary<Half, F>; break;
      case 'y': i.execute = ternary<BFloat, F>; break;
      case 'H': i.execute = ternary<u32, Both<Half, F>>; break;
      case 'Y': i.execute = ternary<u32, Both<BFloat, F>>; break;
    }
  } else if (is("div") && wide) {
    decode_operands(d, operands, i, {bytes, bytes, bytes});
    bool exact = form.take_one({"approx", "full", "rn"}) == "rn";
    if (t.bits == 64) i.execute = exact ? binary<double, FloatDivide> : nullptr;
    else if (exact) i.execute = ftz ? binary<float, Flushed<FloatDivide>> : binary<float, FloatDivide>;
    else i.execute = ftz ? approximate<binary<float, Flushed<FloatDivide>>, 22000> : approximate<binary<float, FloatDivide>, 22000>;
  } else if (is("sqrt") || is("rcp")) {
    decode_operands(d, operands, i, {bytes, bytes});
    bool exact = form.take_one({"approx", "rn"}) == "rn";
    if (t.bits == 64) {
      i.execute = !exact ? nullptr : is("sqrt") ? unary<double, double, Root> : unary<double, double, Reciprocal>;
    } else if (is("sqrt")) {
      if (exact) i.execute = ftz ? unary<float, float, Flushed<Root>> : unary<float, float, Root>;
      else i.execute = ftz ? approximate<unary<float, float, Flushed<Root>>, 23000> : approximate<unary<float, float, Root>, 23000>;
    } else {
      if (exact) i.execute = ftz ? unary<float, float, Flushed<Reciprocal>> : unary<float, float, Reciprocal>;
      else i.execute = ftz ? approximate<unary<float, float, Flushed<Reciprocal>>, 23000> : approximate<unary<float, float, Reciprocal>, 23000>;
    }
  } else if (single && form.take("approx")) {
    decode_operands(d, operands, i, {4, 4});
#define APPROXIMATION(f, millis) \
  (ftz ? approximate<unary<float, float, Flushed<f>>, millis> : approximate<unary<float, float, f>, millis>)
    if (is("ex2")) i.execute = APPROXIMATION(Exp2, 22500);
    else if (is("lg2")) i.execute = APPROXIMATION(Log2, 22000);
    else if (is("rsqrt")) i.execute = APPROXIMATION(ReciprocalRoot, 22900);
    else if (is("sin")) i.execute = APPROXIMATION(Sine, 20500);
    else if (is("cos")) i.execute = APPROXIMATION(Cosine, 20500);
    else if (is("tanh")) i.execute = APPROXIMATION(Tangent, 11000);
  }
  return i.execute;
}

}  // namespace ptx
