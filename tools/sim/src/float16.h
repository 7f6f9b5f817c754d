// bfloat16 and half: storage types with the conversions of the GPU (round to nearest even; any NaN becomes
// 0x7fff; denormals kept). No arithmetic, so that a kernel cannot compute in 16 bits.
#pragma once

#include <bit>
#include <cstdint>

namespace diffratio {

struct bfloat16 {
  uint16_t bits;
};
struct half {
  uint16_t bits;
};

inline float to_float(bfloat16 v) { return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

inline float to_float(half v) {
  const uint32_t sign = (v.bits & 0x8000u) << 16, exponent = v.bits >> 10 & 0x1fu, mantissa = v.bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 0x1f ? 0xffu : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

template <class T> T from_float(float v) = delete;
template <> inline float from_float<float>(float v) { return v; }

template <> inline bfloat16 from_float<bfloat16>(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <> inline half from_float<half>(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (v != v) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  // Below the normal halves the last bit is worth 2^-24, as in the floats from 0.5 on: adding 0.5 rounds.
  if (magnitude < 0x38800000u) {
    const uint32_t sum = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f);
    return {static_cast<uint16_t>(sign | (sum - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - ((127u - 15u) << 23);
  return {static_cast<uint16_t>(sign | rounded >> 13)};
}

}  // namespace diffratio
