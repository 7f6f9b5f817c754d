// Barriers, shuffles and votes. Every call knows its line, so that threads that meet on different lines are
// found out.
#pragma once

#include <cstring>
#include <type_traits>

#include "schedule.h"

inline void __syncthreads(diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  diffratio::simulator::meet_block({"__syncthreads", place}, false);
}
inline int __syncthreads_or(int predicate,
                            diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  return diffratio::simulator::meet_block({"__syncthreads_or", place}, predicate) != 0;
}
inline int __syncthreads_count(int predicate,
                               diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  return diffratio::simulator::meet_block({"__syncthreads_count", place}, predicate);
}

inline void __syncwarp(unsigned mask = ~0u,
                       diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  diffratio::simulator::vote_lanes({"__syncwarp", place}, mask, false);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  return diffratio::simulator::vote_lanes({"__ballot_sync", place}, mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate,
                      diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  return diffratio::simulator::vote_lanes({"__any_sync", place}, mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  return diffratio::simulator::vote_lanes({"__all_sync", place}, mask, predicate) == mask;
}

namespace diffratio::simulator {

template <class T> T shuffle(Call call, unsigned mask, T value, unsigned source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = meet_lanes(call, mask, bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The first lane of this lane's segment of `width` lanes.
inline unsigned segment(int width) { return lane_number() & ~static_cast<unsigned>(width - 1); }

}  // namespace diffratio::simulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  using namespace diffratio::simulator;
  const unsigned from = segment(width) + static_cast<unsigned>(source & (width - 1));
  return shuffle({"__shfl_sync", place}, mask, value, from);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  using namespace diffratio::simulator;
  const unsigned source = lane_number() ^ static_cast<unsigned>(lanes);
  const bool beyond = source >= segment(width) + static_cast<unsigned>(width);
  return shuffle({"__shfl_xor_sync", place}, mask, value, beyond ? lane_number() : source);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  using namespace diffratio::simulator;
  const bool beyond = lane_number() < segment(width) + delta;
  return shuffle({"__shfl_up_sync", place}, mask, value, lane_number() - (beyond ? 0 : delta));
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   diffratio::simulator::Place place = diffratio::simulator::Place::current()) {
  using namespace diffratio::simulator;
  const bool beyond = lane_number() + delta >= segment(width) + static_cast<unsigned>(width);
  return shuffle({"__shfl_down_sync", place}, mask, value, lane_number() + (beyond ? 0 : delta));
}
