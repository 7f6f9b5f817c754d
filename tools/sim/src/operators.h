// The kernels on torch's CPU tensors, under the names and with the arguments that cuda_ops.cpp gives them.
#pragma once

#include "cuda_ops_heads.h"
#include "cuda_ops_two_bin.h"
#include "python.h"

namespace diffratio::simulator {

inline void bind_operators(pybind11::module_& module) {
  module.def("router_logits", &cuda::router_logits<Tensor>);
  module.def("router_logits_backward", &cuda::router_logits_backward<Tensor>);
  module.def("topk_select", &cuda::topk_select<Tensor>);
  module.def("row_map", &cuda::row_map<Tensor>);
  module.def("gather_adaln", &cuda::gather_adaln<Tensor>);
  module.def("gather_adaln_backward", &cuda::gather_adaln_backward<Tensor>);
  module.def("qk_norm_rope", &cuda::qk_norm_rope<Tensor>);
  module.def("qk_norm_rope_backward", &cuda::qk_norm_rope_backward<Tensor>);
  module.def("activation", &cuda::activation<Tensor>);
  module.def("activation_backward", &cuda::activation_backward<Tensor>);
  module.def("gate_residual", &cuda::gate_residual<Tensor>);
  module.def("gate_residual_backward", &cuda::gate_residual_backward<Tensor>);
  module.def("scatter_rescale", &cuda::scatter_rescale<Tensor>);
  module.def("scatter_rescale_backward", &cuda::scatter_rescale_backward<Tensor>);
  module.def("two_bin_gelu", &cuda::two_bin_gelu<Tensor>);
  module.def("two_bin_gelu_backward", &cuda::two_bin_gelu_backward<Tensor>);
  module.def("two_bin_blend", &cuda::two_bin_blend<Tensor>);
  module.def("two_bin_blend_backward", &cuda::two_bin_blend_backward<Tensor>);
}

}  // namespace diffratio::simulator
