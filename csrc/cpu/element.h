// Storage types and their accumulation types. Included once per instruction set: everything is static.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace diffratio {
namespace {

struct BFloat16 {
  uint16_t bits;
};
using Half = _Float16;

template <typename T> struct Accumulate { using type = float; };
template <> struct Accumulate<double> { using type = double; };
template <typename T> using acc_t = typename Accumulate<T>::type;

inline double load(double v) { return v; }
inline float load(float v) { return v; }
inline float load(Half v) { return static_cast<float>(v); }
inline float load(BFloat16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline void store(double* to, double v) { *to = v; }
inline void store(float* to, float v) { *to = v; }
inline void store(Half* to, float v) { *to = static_cast<Half>(v); }
inline void store(BFloat16* to, float v) {  // round to nearest even; a NaN stays a NaN
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(v != v ? 0x7fc0u : rounded);
}

}  // namespace
}  // namespace diffratio
