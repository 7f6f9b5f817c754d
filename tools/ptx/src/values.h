// Numbers as a GPU computes them: 16-bit floats, results rounded once, one NaN.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i8 = std::int8_t;
using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

struct Half {  // f16
  u16 bits;
};
struct BFloat {  // bf16
  u16 bits;
};

template <class T>
constexpr bool is_16bit_float = std::is_same_v<T, Half> || std::is_same_v<T, BFloat>;
template <class T>
constexpr bool is_float = std::is_floating_point_v<T> || is_16bit_float<T>;

template <class T>
inline T value(T t) {
  return t;
}
inline float value(Half h) { return static_cast<float>(std::bit_cast<_Float16>(h.bits)); }
inline float value(BFloat b) { return std::bit_cast<float>(static_cast<u32>(b.bits) << 16); }

// Arithmetic gives one NaN, whatever it was given.
inline float canonical(float f) { return f != f ? std::bit_cast<float>(0x7FFFFFFFu) : f; }
inline double canonical(double d) { return d != d ? std::bit_cast<double>(0x7FFFFFFFFFFFFFFFull) : d; }

// a * b + c in fp64, where a * b is exact, rounded to odd: rounding that to 24 bits or fewer is rounding the
// exact sum once.
inline double odd_sum(double a, double b, double c) {
  double product = a * b, sum = product + c;
  double of_c = sum - product, lost = (product - (sum - of_c)) + (c - of_c);  // Knuth's two-sum
  u64 bits = std::bit_cast<u64>(sum);
  if (lost != 0 && std::isfinite(sum) && !(bits & 1)) bits += (lost > 0) == (sum > 0) ? 1 : -1;
  return std::bit_cast<double>(bits);
}

// To nearest, ties to even, once.
template <class T>
T rounded(double d);
template <>
inline double rounded<double>(double d) {
  return canonical(d);
}
template <>
inline float rounded<float>(double d) {
  return canonical(static_cast<float>(d));
}
template <>
inline Half rounded<Half>(double d) {
  return d != d ? Half{0x7FFF} : Half{std::bit_cast<u16>(static_cast<_Float16>(d))};
}
template <>
inline BFloat rounded<BFloat>(double d) {
  if (d != d) return {0x7FFF};
  float f = static_cast<float>(d);
  u32 bits = std::bit_cast<u32>(f);
  if (f != d && std::isfinite(f)) {  // to odd on the way to 8 bits
    if (std::fabs(static_cast<double>(f)) > std::fabs(d)) bits--;
    bits |= 1;
  }
  return {static_cast<u16>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

// Subnormal numbers count as zeros of their sign (.ftz).
inline float flushed(float f) { return std::fabs(f) < 0x1p-126f ? std::copysign(0.0f, f) : f; }

}  // namespace ptx
