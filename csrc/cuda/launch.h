// What the launchers share.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "diffratio/row.cuh"
#include "kernels.h"

namespace diffratio::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("diffratio_cuda: ") + what + ": " + cudaGetErrorString(error));
}

// f(T{}) with the storage type T of an element.
template <class F> void with_element(Element element, F f) {
  switch (element) {
    case Element::kFloat: return f(float{});
    case Element::kBFloat16: return f(bfloat16{});
    case Element::kHalf: return f(half{});
  }
}

// f(std::true_type) or f(std::false_type).
template <class F> void with_bool(bool value, F f) {
  value ? f(std::true_type{}) : f(std::false_type{});
}

inline bool all_aligned(std::initializer_list<const void*> pointers, int64_t bytes = 16) {
  for (const void* pointer : pointers)
    if (!aligned(pointer, bytes)) return false;
  return true;
}

inline bool aligned(const Modulation& m) { return aligned(m.values) && m.stride % 4 == 0; }

// Grid and block of a kernel that has rows (row.cuh): warps enough to hold a row and a block of their own,
// or four rows of one warp each.
struct RowGrid {
  dim3 grid, block;
  bool held;  // aligned rows fit into the registers of their threads
};

template <class T> RowGrid row_grid(int64_t rows, int64_t width) {
  constexpr int64_t kMaxWarps = kMaxRowThreads / kWarp;
  const int64_t warps = ceil_div<int64_t>(width, kHeld * kWarp * kPerVector<T>);
  const unsigned threads = static_cast<unsigned>(std::min(warps, kMaxWarps) * kWarp);
  const unsigned rows_per_block = warps == 1 ? 4 : 1;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(rows, rows_per_block))), block(threads, rows_per_block);
  return {grid, block, warps <= kMaxWarps && width % kPerVector<T> == 0};
}

}  // namespace diffratio::cuda
