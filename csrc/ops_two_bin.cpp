// torch.ops.diffratio_native.two_bin_*: the launchers of two bins, as in ops.cpp.
#include "ops.h"

namespace {

using namespace diffratio_native;

diffratio::TwoBins two_bins(const Tensor& weight_large, const Tensor& cu_seqlens_large, const Tensor& cu_seqlens_small,
                            int64_t rows) {
  return {weight_large.data_ptr(), static_cast<const int32_t*>(cu_seqlens_large.data_ptr()),
          static_cast<const int32_t*>(cu_seqlens_small.data_ptr()), rows};
}

void two_bin_gelu(Tensor pre, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small, Tensor inner) {
  const diffratio::TwoBinGeluArgs args{pre.data_ptr(),
                                       two_bins(weight_large, cu_seqlens_large, cu_seqlens_small, inner.size(0)),
                                       pre.size(1), inner.data_ptr()};
  parallel_for(0, inner.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().two_bin_gelu(element(pre), args, begin, end);
  });
}

void two_bin_gelu_backward(Tensor grad, Tensor pre, Tensor weight_large, Tensor cu_seqlens_large,
                           Tensor cu_seqlens_small, Tensor grad_pre, Tensor weight_dots) {
  const diffratio::TwoBinGeluBackwardArgs args{
      {pre.data_ptr(), two_bins(weight_large, cu_seqlens_large, cu_seqlens_small, grad.size(0)), pre.size(1), nullptr},
      grad.data_ptr(),
      grad_pre.data_ptr(),
      weight_dots.data_ptr()};
  parallel_for(0, grad.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().two_bin_gelu_backward(element(pre), args, begin, end);
  });
}

void two_bin_blend(Tensor x, Tensor place, int64_t tokens, Tensor hidden, Tensor branch, Tensor gate,
                   Tensor logits, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small,
                   std::string rescale, double score_scale, Tensor out) {
  const diffratio::TwoBinBlendArgs args{
      scatter_args(x, place, tokens, hidden, branch, gate, logits, rescale, score_scale, out.data_ptr()),
      two_bins(weight_large, cu_seqlens_large, cu_seqlens_small, branch.size(0))};
  parallel_for(0, place.numel(), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().two_bin_blend(element(x), args, begin, end);
  });
}

void two_bin_blend_backward(Tensor grad_out, Tensor x, Tensor index, Tensor place, int64_t tokens, Tensor hidden,
                            Tensor branch, Tensor gate, Tensor logits, Tensor weight_large, Tensor cu_seqlens_large,
                            Tensor cu_seqlens_small, std::string rescale, double score_scale, Tensor grad_x,
                            Tensor grad_hidden, Tensor grad_branch, Tensor grad_gate, Tensor grad_logits,
                            Tensor weight_dots) {
  const diffratio::TwoBinBlendBackwardArgs args{
      {scatter_args(x, place, tokens, hidden, branch, gate, logits, rescale, score_scale, nullptr), rows(index),
       index.numel(), grad_out.data_ptr(), grad_x.data_ptr(), grad_hidden.data_ptr(), grad_branch.data_ptr(),
       grad_logits.data_ptr(), {nullptr, grad_gate.data_ptr(), nullptr}},
      two_bins(weight_large, cu_seqlens_large, cu_seqlens_small, branch.size(0)),
      weight_dots.data_ptr()};
  parallel_for(0, place.numel(), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().two_bin_blend_backward_rows(element(x), args, begin, end);
  });
  // The gate's gradient does not look at the streams: it is that of scatter_rescale.
  parallel_for(0, branch.size(1), kColumnsPerTask, [&](int64_t begin, int64_t end) {
    kernels().scatter_rescale_backward_columns(element(x), args.scatter, begin, end);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(diffratio_native, m) {
  m.def(
      "two_bin_gelu(Tensor pre, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small, "
      "Tensor(a!) inner) -> ()");
  m.def(
      "two_bin_gelu_backward(Tensor grad, Tensor pre, Tensor weight_large, Tensor cu_seqlens_large, "
      "Tensor cu_seqlens_small, Tensor(a!) grad_pre, Tensor(b!) weight_dots) -> ()");
  m.def(
      "two_bin_blend(Tensor x, Tensor place, int tokens, Tensor hidden, Tensor branch, Tensor gate, "
      "Tensor logits, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small, str rescale, "
      "float score_scale, Tensor(a!) out) -> ()");
  m.def(
      "two_bin_blend_backward(Tensor grad_out, Tensor x, Tensor index, Tensor place, int tokens, Tensor hidden, "
      "Tensor branch, Tensor gate, Tensor logits, Tensor weight_large, Tensor cu_seqlens_large, "
      "Tensor cu_seqlens_small, str rescale, float score_scale, Tensor(a!) grad_x, Tensor(b!) grad_hidden, "
      "Tensor(c!) grad_branch, Tensor(d!) grad_gate, Tensor(e!) grad_logits, Tensor(f!) weight_dots) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(diffratio_native, CPU, m) {
  m.impl("two_bin_gelu", TORCH_BOX(&two_bin_gelu));
  m.impl("two_bin_gelu_backward", TORCH_BOX(&two_bin_gelu_backward));
  m.impl("two_bin_blend", TORCH_BOX(&two_bin_blend));
  m.impl("two_bin_blend_backward", TORCH_BOX(&two_bin_blend_backward));
}
