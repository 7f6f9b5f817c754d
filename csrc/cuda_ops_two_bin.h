// The same as cuda_ops.h for two bins.
#pragma once

#include "cuda_ops.h"

namespace diffratio::cuda {

// The kept rows of two bins: weight_large [B], offsets [B+1].
template <class Tensor>
Bins bins(const Tensor& weight_large, const Tensor& cu_seqlens_large, const Tensor& cu_seqlens_small, int64_t rows) {
  return {.weight_large = data<float>(weight_large),
          .cu_seqlens_large = data<int32_t>(cu_seqlens_large),
          .cu_seqlens_small = data<int32_t>(cu_seqlens_small),
          .samples = weight_large.numel(),
          .rows = rows};
}

template <class Tensor>
void two_bin_gelu(Tensor pre, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small, Tensor inner,
                  int64_t stream) {
  const DeviceGuard guard(pre.get_device_index());
  two_bin_gelu({.bins = bins(weight_large, cu_seqlens_large, cu_seqlens_small, inner.size(0)),
                .width = inner.size(1),
                .pre = pre.data_ptr(),
                .inner = inner.data_ptr()},
               element(pre), stream_of(stream));
}

template <class Tensor>
void two_bin_gelu_backward(Tensor grad, Tensor pre, Tensor weight_large, Tensor cu_seqlens_large,
                           Tensor cu_seqlens_small, Tensor grad_pre, Tensor weight_dots, int64_t stream) {
  const DeviceGuard guard(pre.get_device_index());
  two_bin_gelu_backward({.bins = bins(weight_large, cu_seqlens_large, cu_seqlens_small, grad.size(0)),
                         .width = grad.size(1),
                         .grad = grad.data_ptr(),
                         .pre = pre.data_ptr(),
                         .grad_pre = grad_pre.data_ptr(),
                         .weight_dots = data<float>(weight_dots)},
                        element(pre), stream_of(stream));
}

template <class Tensor>
void two_bin_blend(Tensor x, Tensor place, int64_t tokens, Tensor hidden, Tensor branch, Tensor gate,
                   Tensor logits, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small,
                   std::string rescale, double score_scale, Tensor out, int64_t stream) {
  const DeviceGuard guard(x.get_device_index());
  ScatterArgs args = scatter_args(x, tokens, hidden, branch, gate, logits, rescale, score_scale);
  args.place = data<int32_t>(place);
  args.rows = place.numel();
  args.out = out.data_ptr();
  two_bin_blend({.scatter = args, .bins = bins(weight_large, cu_seqlens_large, cu_seqlens_small, branch.size(0))},
                element(x), stream_of(stream));
}

template <class Tensor>
void two_bin_blend_backward(Tensor grad_out, Tensor x, Tensor place, int64_t tokens, Tensor hidden,
                            Tensor branch, Tensor gate, Tensor logits, Tensor weight_large,
                            Tensor cu_seqlens_large, Tensor cu_seqlens_small, std::string rescale,
                            double score_scale, Tensor grad_x, Tensor grad_hidden, Tensor grad_branch,
                            Tensor partial, Tensor grad_gate, Tensor grad_logits, Tensor weight_dots,
                            int64_t stream) {
  const DeviceGuard guard(x.get_device_index());
  ScatterArgs args = scatter_args(x, tokens, hidden, branch, gate, logits, rescale, score_scale);
  args.place = data<int32_t>(place);
  args.rows = place.numel();
  const Bins rows = bins(weight_large, cu_seqlens_large, cu_seqlens_small, branch.size(0));
  two_bin_blend_backward({.forward = {.scatter = args, .bins = rows},
                          .grad_out = grad_out.data_ptr(),
                          .grad_x = grad_x.data_ptr(),
                          .grad_hidden = grad_hidden.data_ptr(),
                          .grad_branch = grad_branch.data_ptr(),
                          .grad_logits = data<float>(grad_logits),
                          .weight_dots = data<float>(weight_dots),
                          .columns = column_sums(args.place, x.size(0), tokens, partial, grad_gate)},
                         element(x), stream_of(stream));
}

}  // namespace diffratio::cuda
