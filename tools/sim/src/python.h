// Torch tensors as arguments of bound functions, without a line of torch: its tensors are asked as any Python
// object is.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <unordered_map>

#include "error.h"
#include "schedule.h"
#include "tensor.h"

namespace pybind11::detail {

template <> struct type_caster<diffratio::simulator::Tensor> {
  PYBIND11_TYPE_CASTER(diffratio::simulator::Tensor, const_name("torch.Tensor"));

  bool load(handle source, bool) {
    using diffratio::simulator::ScalarType;
    static const std::unordered_map<std::string, ScalarType> types{
        {"torch.bool", ScalarType::Bool},         {"torch.uint8", ScalarType::Byte},
        {"torch.int32", ScalarType::Int},         {"torch.int64", ScalarType::Long},
        {"torch.float16", ScalarType::Half},      {"torch.bfloat16", ScalarType::BFloat16},
        {"torch.float32", ScalarType::Float},     {"torch.float64", ScalarType::Double}};
    if (!hasattr(source, "data_ptr")) return false;
    const auto type = types.find(str(source.attr("dtype")));
    if (type == types.end()) throw value_error("no kernel reads " + std::string(str(source.attr("dtype"))));
    if (!source.attr("is_cpu").cast<bool>()) throw value_error("the simulator reads tensors on the CPU only");
    value = {reinterpret_cast<void*>(source.attr("data_ptr")().cast<uintptr_t>()),
             source.attr("shape").cast<std::vector<int64_t>>(),
             source.attr("stride")().cast<std::vector<int64_t>>(), type->second};
    const bool rows = value.dim() == 2 && (value.size(1) == 1 || value.stride(1) == 1);
    if (!rows && !source.attr("is_contiguous")().cast<bool>())
      throw value_error("tensors must be contiguous, or matrices of contiguous rows");
    return true;
  }
};

}  // namespace pybind11::detail

namespace diffratio::simulator {

// What every module of the simulator offers besides its kernels.
inline void bind_schedule(pybind11::module_& module) {
  pybind11::register_exception<Error>(module, "Error", PyExc_RuntimeError);
  module.def("seed", &set_seed, "0: natural order; any other number draws an order of blocks and threads");
  module.def("switches", &switches, "context switches since the module was loaded");
}

}  // namespace diffratio::simulator
