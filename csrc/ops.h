// What the launchers of the row kernels share.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>

#include "cpu/kernels.h"

namespace diffratio_native {

using diffratio::Element;
using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kColumnsPerTask = 64;

// The table of the instruction set in use.
const diffratio::Kernels& kernels();

inline Element element(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Element::kFloat;
    case ScalarType::Double: return Element::kDouble;
    case ScalarType::BFloat16: return Element::kBFloat16;
    case ScalarType::Half: return Element::kHalf;
    default: STD_TORCH_CHECK(false, "diffratio_native: element type not float, double, bfloat16 or half");
  }
}

inline const int64_t* rows(const Tensor& index) { return static_cast<const int64_t*>(index.data_ptr()); }
inline void* data(const std::optional<Tensor>& t) { return t ? t->data_ptr() : nullptr; }
inline const int32_t* place_of(const std::optional<Tensor>& t) { return static_cast<const int32_t*>(data(t)); }
inline const int64_t* groups_of(const std::optional<Tensor>& t) { return static_cast<const int64_t*>(data(t)); }

inline diffratio::Rescale rescale_mode(const std::string& rescale) {
  if (rescale == "mlp") return diffratio::Rescale::kMlp;
  if (rescale == "residual") return diffratio::Rescale::kResidual;
  if (rescale == "output") return diffratio::Rescale::kOutput;
  STD_TORCH_CHECK(rescale == "none", "diffratio_native: unknown rescale ", rescale);
  return diffratio::Rescale::kNone;
}

inline diffratio::ScatterArgs scatter_args(const Tensor& x, const Tensor& place, int64_t tokens,
                                           const Tensor& hidden, const Tensor& branch, const Tensor& gate,
                                           const Tensor& logits, const std::string& rescale, double score_scale,
                                           void* out) {
  return {x.data_ptr(),      place_of(place), hidden.data_ptr(), branch.data_ptr(),     gate.data_ptr(),
          logits.data_ptr(), tokens,          hidden.size(1),    rescale_mode(rescale), score_scale,
          out,               nullptr,         {}};
}

}  // namespace diffratio_native
