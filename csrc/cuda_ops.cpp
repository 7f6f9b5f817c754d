// torch.ops.diffratio_cuda.*: the CUDA kernels under the stable ABI.
#include "cuda_ops.h"
#include "cuda_ops_heads.h"
#include "cuda_ops_two_bin.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace cuda = diffratio::cuda;
using torch::stable::Tensor;

STABLE_TORCH_LIBRARY(diffratio_cuda, m) {
  m.def("router_logits(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) logits, int stream) -> ()");
  m.def(
      "router_logits_backward(Tensor grad_logits, Tensor x, Tensor weight, Tensor(a!) grad_x, Tensor(b!) partial, "
      "Tensor(c!) grad_weight, int stream) -> ()");
  m.def(
      "topk_select(Tensor logits, int keep, Tensor(a!) offsets, Tensor? keep_small, Tensor(b!) index, "
      "Tensor(c!)? place, int stream) -> ()");
  m.def("row_map(Tensor index, Tensor(a!) place, int stream) -> ()");
  m.def(
      "gather_adaln(Tensor x, Tensor index, int tokens, Tensor? groups, bool gather, Tensor shift, Tensor scale, "
      "str norm, float eps, Tensor(a!)? rows, Tensor(b!) normed, int stream) -> ()");
  m.def(
      "gather_adaln_backward(Tensor rows, Tensor index, Tensor place, int tokens, Tensor? groups, Tensor? order, "
      "Tensor? bounds, bool gather, Tensor scale, Tensor? grad_rows, Tensor grad_normed, str norm, float eps, "
      "Tensor(a!) grad_x, Tensor(b!) stats, Tensor(c!) partial, Tensor(d!) grad_modulation, int stream) -> ()");
  m.def(
      "qk_norm_rope(Tensor query, Tensor key, Tensor value, Tensor index, int tokens, int heads, int kv_heads, "
      "str norm, bool across_heads, float eps, Tensor? query_weight, Tensor? key_weight, Tensor? query_bias, "
      "Tensor? key_bias, Tensor? cos, Tensor? sin, bool halves, Tensor? shift, Tensor(a!) out, int stream) -> ()");
  m.def(
      "qk_norm_rope_backward(Tensor grad, Tensor query, Tensor key, Tensor index, int tokens, int heads, "
      "int kv_heads, str norm, bool across_heads, float eps, Tensor? query_weight, Tensor? key_weight, "
      "Tensor? query_bias, Tensor? key_bias, Tensor? cos, Tensor? sin, bool halves, Tensor(a!) grad_query, "
      "Tensor(b!) grad_key, Tensor(c!)? sums_query_weight, Tensor(d!)? sums_key_weight, "
      "Tensor(e!)? sums_query_bias, Tensor(f!)? sums_key_bias, int stream) -> ()");
  m.def(
      "activation(Tensor gate, Tensor? value, str kind, Tensor? index, Tensor? logits, float score_scale, "
      "Tensor(a!) out, int stream) -> ()");
  m.def(
      "activation_backward(Tensor grad, Tensor gate, Tensor? value, str kind, Tensor? index, Tensor? logits, "
      "float score_scale, Tensor(a!) grad_gate, Tensor(b!)? grad_value, Tensor(c!)? grad_logits, int stream) -> ()");
  m.def(
      "gate_residual(Tensor hidden, Tensor branch, Tensor gate, Tensor index, int tokens, Tensor? groups, str norm, "
      "Tensor? norm_weight, Tensor? norm_bias, float norm_eps, Tensor(a!) out, int stream) -> ()");
  m.def(
      "gate_residual_backward(Tensor grad_out, Tensor branch, Tensor gate, Tensor index, Tensor place, int tokens, "
      "Tensor? groups, Tensor? order, Tensor? bounds, str norm, Tensor? norm_weight, Tensor? norm_bias, "
      "float norm_eps, Tensor(a!) grad_branch, Tensor(b!)? stats, Tensor(c!) partial, Tensor(d!) sums, int stream) "
      "-> ()");
  m.def(
      "scatter_rescale(Tensor x, Tensor? place, Tensor? index, int tokens, Tensor? groups, Tensor hidden, "
      "Tensor branch, Tensor gate, Tensor logits, str rescale, float score_scale, str norm, Tensor? norm_weight, "
      "Tensor? norm_bias, float norm_eps, Tensor(a!) out, int stream) -> ()");
  m.def(
      "scatter_rescale_backward(Tensor grad_out, Tensor x, Tensor place, int tokens, Tensor? groups, Tensor? order, "
      "Tensor? bounds, Tensor hidden, Tensor branch, Tensor gate, Tensor logits, str rescale, float score_scale, "
      "str norm, Tensor? norm_weight, Tensor? norm_bias, float norm_eps, Tensor(a!) grad_x, Tensor(b!) grad_hidden, "
      "Tensor(c!) grad_branch, Tensor(d!)? stats, Tensor(e!) partial, Tensor(f!) sums, Tensor(g!) grad_logits, "
      "int stream) -> ()");
  m.def(
      "two_bin_gelu(Tensor pre, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small, "
      "Tensor(a!) inner, int stream) -> ()");
  m.def(
      "two_bin_gelu_backward(Tensor grad, Tensor pre, Tensor weight_large, Tensor cu_seqlens_large, "
      "Tensor cu_seqlens_small, Tensor(a!) grad_pre, Tensor(b!) weight_dots, int stream) -> ()");
  m.def(
      "two_bin_blend(Tensor x, Tensor place, int tokens, Tensor hidden, Tensor branch, Tensor gate, "
      "Tensor logits, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small, str rescale, "
      "float score_scale, Tensor(a!) out, int stream) -> ()");
  m.def(
      "two_bin_blend_backward(Tensor grad_out, Tensor x, Tensor place, int tokens, Tensor hidden, Tensor branch, "
      "Tensor gate, Tensor logits, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small, str rescale, "
      "float score_scale, Tensor(a!) grad_x, Tensor(b!) grad_hidden, Tensor(c!) grad_branch, Tensor(d!) partial, "
      "Tensor(e!) grad_gate, Tensor(f!) grad_logits, Tensor(g!) weight_dots, int stream) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(diffratio_cuda, CUDA, m) {
  m.impl("router_logits", TORCH_BOX(&cuda::router_logits<Tensor>));
  m.impl("router_logits_backward", TORCH_BOX(&cuda::router_logits_backward<Tensor>));
  m.impl("topk_select", TORCH_BOX(&cuda::topk_select<Tensor>));
  m.impl("row_map", TORCH_BOX(&cuda::row_map<Tensor>));
  m.impl("gather_adaln", TORCH_BOX(&cuda::gather_adaln<Tensor>));
  m.impl("gather_adaln_backward", TORCH_BOX(&cuda::gather_adaln_backward<Tensor>));
  m.impl("qk_norm_rope", TORCH_BOX(&cuda::qk_norm_rope<Tensor>));
  m.impl("qk_norm_rope_backward", TORCH_BOX(&cuda::qk_norm_rope_backward<Tensor>));
  m.impl("activation", TORCH_BOX(&cuda::activation<Tensor>));
  m.impl("activation_backward", TORCH_BOX(&cuda::activation_backward<Tensor>));
  m.impl("gate_residual", TORCH_BOX(&cuda::gate_residual<Tensor>));
  m.impl("gate_residual_backward", TORCH_BOX(&cuda::gate_residual_backward<Tensor>));
  m.impl("scatter_rescale", TORCH_BOX(&cuda::scatter_rescale<Tensor>));
  m.impl("scatter_rescale_backward", TORCH_BOX(&cuda::scatter_rescale_backward<Tensor>));
  m.impl("two_bin_gelu", TORCH_BOX(&cuda::two_bin_gelu<Tensor>));
  m.impl("two_bin_gelu_backward", TORCH_BOX(&cuda::two_bin_gelu_backward<Tensor>));
  m.impl("two_bin_blend", TORCH_BOX(&cuda::two_bin_blend<Tensor>));
  m.impl("two_bin_blend_backward", TORCH_BOX(&cuda::two_bin_blend_backward<Tensor>));
}
