// From tensors to the launchers of csrc/cuda, for torch's stable Tensor (cuda_ops.cpp) and for the simulator's
// (tools/sim/src/operators.h). Tensors arrive checked, with their outputs allocated and, but for the rows of modulation
// vectors, contiguous (diffratio_kernels/kernels/cuda.py does that). `stream` is a cudaStream_t as an integer.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "cuda/kernels.h"

namespace diffratio::cuda {

inline Stream stream_of(int64_t stream) { return reinterpret_cast<Stream>(stream); }

template <class Tensor> Element element(const Tensor& t) {
  using Type = decltype(t.scalar_type());
  switch (t.scalar_type()) {
    case Type::Float: return Element::kFloat;
    case Type::BFloat16: return Element::kBFloat16;
    case Type::Half: return Element::kHalf;
    default: throw std::invalid_argument("diffratio_cuda: element type not float, bfloat16 or half");
  }
}

inline Rescale rescale_mode(const std::string& rescale) {
  if (rescale == "mlp") return Rescale::kMlp;
  if (rescale == "residual") return Rescale::kResidual;
  if (rescale == "output") return Rescale::kOutput;
  if (rescale == "none") return Rescale::kNone;
  throw std::invalid_argument("diffratio_cuda: unknown rescale " + rescale);
}

template <class T, class Tensor> T* data(const Tensor& t) { return static_cast<T*>(t.data_ptr()); }
template <class Tensor> void* data(const std::optional<Tensor>& t) { return t ? t->data_ptr() : nullptr; }

template <class Tensor> Modulation modulation(const Tensor& t) { return {data<float>(t), t.stride(0)}; }

inline Norm norm_of(const std::string& norm) {
  if (norm == "rms") return Norm::kRms;
  if (norm == "layer") return Norm::kLayer;
  if (norm == "none") return Norm::kNone;
  throw std::invalid_argument("diffratio_cuda: unknown norm " + norm);
}

inline Activation activation_of(const std::string& kind) {
  if (kind == "gelu_tanh") return Activation::kGeluTanh;
  if (kind == "gelu") return Activation::kGelu;
  if (kind == "silu") return Activation::kSilu;
  throw std::invalid_argument("diffratio_cuda: unknown activation " + kind);
}

template <class Tensor>
RowNorm branch_norm(const std::string& norm, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                       double eps) {
  return {.kind = norm_of(norm),
          .weight = static_cast<float*>(data(weight)),
          .bias = static_cast<float*>(data(bias)),
          .eps = static_cast<float>(eps)};
}

// place [B*N] or null, partial [slices, sums, B, D], sums [sums, B, D]
template <class Tensor>
ColumnSums column_sums(const int32_t* place, int64_t samples, int64_t tokens, const Tensor& partial,
                       const Tensor& sums) {
  return {.place = place,
          .samples = samples,
          .tokens = tokens,
          .width = sums.size(2),
          .partial = data<float>(partial),
          .sums = data<float>(sums),
          .groups = {}};
}

// groups [B*N] or null; order and bounds as Groups has them.
template <class Tensor>
Groups groups_of(const std::optional<Tensor>& groups, const std::optional<Tensor>& order,
                 const std::optional<Tensor>& bounds) {
  if (!groups) return {};
  return {.of_row = static_cast<int64_t*>(data(groups)),
          .order = static_cast<int64_t*>(data(order)),
          .bounds = static_cast<int64_t*>(data(bounds)),
          .count = bounds->numel() - 1};
}

template <class Tensor>
void router_logits(Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor logits, int64_t stream) {
  const DeviceGuard guard(x.get_device_index());
  router_logits({.x = x.data_ptr(),
                 .weight = data<float>(weight),
                 .bias = static_cast<float*>(data(bias)),
                 .rows = logits.numel(),
                 .width = weight.numel(),
                 .logits = data<float>(logits)},
                element(x), stream_of(stream));
}

// partial and grad_weight as in column_sums, for one sample of all rows.
template <class Tensor>
void router_logits_backward(Tensor grad_logits, Tensor x, Tensor weight, Tensor grad_x, Tensor partial,
                            Tensor grad_weight, int64_t stream) {
  const DeviceGuard guard(x.get_device_index());
  router_logits_backward({.grad_logits = data<float>(grad_logits),
                          .x = x.data_ptr(),
                          .weight = data<float>(weight),
                          .grad_x = grad_x.data_ptr(),
                          .columns = column_sums<Tensor>(nullptr, grad_weight.size(1), grad_logits.numel(), partial,
                                                         grad_weight)},
                         element(x), stream_of(stream));
}

// keep: of every sample, and offsets are written; or -1, and they are read.
template <class Tensor>
void topk_select(Tensor logits, int64_t keep, Tensor offsets, std::optional<Tensor> keep_small, Tensor index,
                 std::optional<Tensor> place, int64_t stream) {
  const DeviceGuard guard(logits.get_device_index());
  topk_select({.logits = data<float>(logits),
               .keep = keep,
               .offsets = data<int32_t>(offsets),
               .keep_small = static_cast<int32_t*>(data(keep_small)),
               .samples = logits.size(0),
               .tokens = logits.size(1),
               .index = data<int64_t>(index),
               .place = static_cast<int32_t*>(data(place))},
              stream_of(stream));
}

// place comes filled with -1.
template <class Tensor> void row_map(Tensor index, Tensor place, int64_t stream) {
  const DeviceGuard guard(index.get_device_index());
  row_map({.index = data<int64_t>(index), .count = index.numel(), .place = data<int32_t>(place)},
             stream_of(stream));
}

// With rows: x is [B*N, D] and its rows at index are copied there. Without: x is packed.
template <class Tensor>
void gather_adaln(Tensor x, Tensor index, int64_t tokens, std::optional<Tensor> groups, bool gather, Tensor shift,
                  Tensor scale, std::string norm, double eps, std::optional<Tensor> rows, Tensor normed,
                  int64_t stream) {
  const DeviceGuard guard(x.get_device_index());
  gather_adaln({.x = x.data_ptr(),
                .index = data<int64_t>(index),
                .count = index.numel(),
                .tokens = tokens,
                .width = normed.size(1),
                .gather = gather,
                .shift = modulation(shift),
                .scale = modulation(scale),
                .eps = static_cast<float>(eps),
                .rows = data(rows),
                .normed = normed.data_ptr(),
                .norm = norm_of(norm),
                .groups = static_cast<int64_t*>(data(groups))},
               element(x), stream_of(stream));
}

template <class Tensor>
void gather_adaln_backward(Tensor rows, Tensor index, Tensor place, int64_t tokens, std::optional<Tensor> groups,
                           std::optional<Tensor> order, std::optional<Tensor> bounds, bool gather, Tensor scale,
                           std::optional<Tensor> grad_rows, Tensor grad_normed, std::string norm, double eps,
                           Tensor grad_x, Tensor stats, Tensor partial, Tensor grad_modulation, int64_t stream) {
  const DeviceGuard guard(rows.get_device_index());
  ColumnSums columns =
      column_sums(data<int32_t>(place), groups ? groups->size(0) : scale.size(0), tokens, partial, grad_modulation);
  columns.groups = groups_of(groups, order, bounds);
  gather_adaln_backward({.rows = rows.data_ptr(),
                         .index = data<int64_t>(index),
                         .count = index.numel(),
                         .gather = gather,
                         .scale = modulation(scale),
                         .grad_rows = data(grad_rows),
                         .grad_normed = grad_normed.data_ptr(),
                         .eps = static_cast<float>(eps),
                         .grad_x = grad_x.data_ptr(),
                         .stats = data<float>(stats),
                         .columns = columns,
                         .norm = norm_of(norm)},
                        element(rows), stream_of(stream));
}

// gate, value and out have rows at any stride.
template <class Tensor>
ActivationArgs activation_args(const Tensor& gate, const std::optional<Tensor>& value, const std::string& kind,
                               const std::optional<Tensor>& index, const std::optional<Tensor>& logits,
                               double score_scale) {
  return {.kind = activation_of(kind),
          .gate = gate.data_ptr(),
          .value = data(value),
          .gate_stride = gate.stride(0),
          .value_stride = value ? value->stride(0) : 0,
          .index = static_cast<int64_t*>(data(index)),
          .logits = static_cast<float*>(data(logits)),
          .score_scale = static_cast<float>(score_scale),
          .rows = gate.size(0),
          .width = gate.size(1),
          .out = nullptr,
          .out_stride = 0};
}

template <class Tensor>
void activation(Tensor gate, std::optional<Tensor> value, std::string kind, std::optional<Tensor> index,
                std::optional<Tensor> logits, double score_scale, Tensor out, int64_t stream) {
  const DeviceGuard guard(gate.get_device_index());
  ActivationArgs args = activation_args(gate, value, kind, index, logits, score_scale);
  args.out = out.data_ptr();
  args.out_stride = out.stride(0);
  activation(args, element(gate), stream_of(stream));
}

// grad_logits comes filled with 0.
template <class Tensor>
void activation_backward(Tensor grad, Tensor gate, std::optional<Tensor> value, std::string kind,
                         std::optional<Tensor> index, std::optional<Tensor> logits, double score_scale,
                         Tensor grad_gate, std::optional<Tensor> grad_value, std::optional<Tensor> grad_logits,
                         int64_t stream) {
  const DeviceGuard guard(gate.get_device_index());
  activation_backward({.forward = activation_args(gate, value, kind, index, logits, score_scale),
                       .grad = grad.data_ptr(),
                       .grad_gate = grad_gate.data_ptr(),
                       .grad_value = data(grad_value),
                       .grad_logits = static_cast<float*>(data(grad_logits))},
                      element(gate), stream_of(stream));
}

template <class Tensor>
GateResidualArgs gate_residual_args(const Tensor& branch, const Tensor& gate, const Tensor& index, int64_t tokens,
                                    const std::optional<Tensor>& groups, RowNorm norm) {
  return {.hidden = nullptr,
          .branch = branch.data_ptr(),
          .gate = modulation(gate),
          .index = data<int64_t>(index),
          .count = index.numel(),
          .tokens = tokens,
          .width = branch.size(1),
          .groups = static_cast<int64_t*>(data(groups)),
          .norm = norm,
          .out = nullptr};
}

// out may be hidden.
template <class Tensor>
void gate_residual(Tensor hidden, Tensor branch, Tensor gate, Tensor index, int64_t tokens,
                   std::optional<Tensor> groups, std::string norm, std::optional<Tensor> norm_weight,
                   std::optional<Tensor> norm_bias, double norm_eps, Tensor out, int64_t stream) {
  const DeviceGuard guard(hidden.get_device_index());
  GateResidualArgs args =
      gate_residual_args(branch, gate, index, tokens, groups, branch_norm(norm, norm_weight, norm_bias, norm_eps));
  args.hidden = hidden.data_ptr();
  args.out = out.data_ptr();
  gate_residual(args, element(hidden), stream_of(stream));
}

template <class Tensor>
void gate_residual_backward(Tensor grad_out, Tensor branch, Tensor gate, Tensor index, Tensor place, int64_t tokens,
                            std::optional<Tensor> groups, std::optional<Tensor> order, std::optional<Tensor> bounds,
                            std::string norm, std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias,
                            double norm_eps, Tensor grad_branch, std::optional<Tensor> stats, Tensor partial,
                            Tensor sums, int64_t stream) {
  const DeviceGuard guard(branch.get_device_index());
  ColumnSums columns =
      column_sums(data<int32_t>(place), groups ? groups->size(0) : gate.size(0), tokens, partial, sums);
  columns.groups = groups_of(groups, order, bounds);
  gate_residual_backward(
      {.forward = gate_residual_args(branch, gate, index, tokens, groups,
                                     branch_norm(norm, norm_weight, norm_bias, norm_eps)),
       .grad_out = grad_out.data_ptr(),
       .grad_branch = grad_branch.data_ptr(),
       .stats = static_cast<float*>(data(stats)),
       .columns = columns},
      element(branch), stream_of(stream));
}

template <class Tensor>
ScatterArgs scatter_args(const Tensor& x, int64_t tokens, const Tensor& hidden, const Tensor& branch,
                         const Tensor& gate, const Tensor& logits, const std::string& rescale,
                         double score_scale) {
  return {.x = x.data_ptr(),
          .place = nullptr,
          .index = nullptr,
          .rows = 0,
          .tokens = tokens,
          .width = hidden.size(1),
          .hidden = hidden.data_ptr(),
          .branch = branch.data_ptr(),
          .gate = modulation(gate),
          .logits = data<float>(logits),
          .rescale = rescale_mode(rescale),
          .score_scale = static_cast<float>(score_scale),
          .out = nullptr};
}

// With place: every row of out, a new tensor. With index: those rows only, so that out may be x.
template <class Tensor>
void scatter_rescale(Tensor x, std::optional<Tensor> place, std::optional<Tensor> index, int64_t tokens,
                     std::optional<Tensor> groups, Tensor hidden, Tensor branch, Tensor gate, Tensor logits,
                     std::string rescale, double score_scale, std::string norm, std::optional<Tensor> norm_weight,
                     std::optional<Tensor> norm_bias, double norm_eps, Tensor out, int64_t stream) {
  const DeviceGuard guard(x.get_device_index());
  ScatterArgs args = scatter_args(x, tokens, hidden, branch, gate, logits, rescale, score_scale);
  args.place = static_cast<int32_t*>(data(place));
  args.index = static_cast<int64_t*>(data(index));
  args.rows = place ? place->numel() : index.value().numel();
  args.out = out.data_ptr();
  const ScatterMore more{.norm = branch_norm(norm, norm_weight, norm_bias, norm_eps),
                         .groups = static_cast<int64_t*>(data(groups)),
                         .stats = nullptr};
  scatter_rescale(args, more, element(x), stream_of(stream));
}

template <class Tensor>
void scatter_rescale_backward(Tensor grad_out, Tensor x, Tensor place, int64_t tokens, std::optional<Tensor> groups,
                              std::optional<Tensor> order, std::optional<Tensor> bounds, Tensor hidden, Tensor branch,
                              Tensor gate, Tensor logits, std::string rescale, double score_scale, std::string norm,
                              std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, double norm_eps,
                              Tensor grad_x, Tensor grad_hidden, Tensor grad_branch, std::optional<Tensor> stats,
                              Tensor partial, Tensor sums, Tensor grad_logits, int64_t stream) {
  const DeviceGuard guard(x.get_device_index());
  ScatterArgs args = scatter_args(x, tokens, hidden, branch, gate, logits, rescale, score_scale);
  args.place = data<int32_t>(place);
  args.rows = place.numel();
  const ScatterMore more{.norm = branch_norm(norm, norm_weight, norm_bias, norm_eps),
                         .groups = static_cast<int64_t*>(data(groups)),
                         .stats = static_cast<float*>(data(stats))};
  ColumnSums columns = column_sums(args.place, x.size(0), tokens, partial, sums);
  columns.groups = groups_of(groups, order, bounds);
  scatter_rescale_backward({.forward = args,
                            .grad_out = grad_out.data_ptr(),
                            .grad_x = grad_x.data_ptr(),
                            .grad_hidden = grad_hidden.data_ptr(),
                            .grad_branch = grad_branch.data_ptr(),
                            .grad_logits = data<float>(grad_logits),
                            .columns = columns},
                           more, element(x), stream_of(stream));
}

}  // namespace diffratio::cuda
