// torch.ops.diffratio_native.*: thin launchers over the row kernels, stable ABI only. Tensors arrive
// contiguous, checked and with their outputs allocated (each operator's cpu.py does that).
#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/topk_select.h"
#include "ops.h"

namespace {

using namespace diffratio_native;

// The tables that this processor can run, the best first.
std::vector<const diffratio::Kernels*> runnable() {
  std::vector<const diffratio::Kernels*> tables;
#ifdef DIFFRATIO_X86_LEVELS
  if (__builtin_cpu_supports("x86-64-v4")) tables.push_back(&diffratio::avx512_kernels());
  if (__builtin_cpu_supports("x86-64-v3")) tables.push_back(&diffratio::avx2_kernels());
#endif
  tables.push_back(&diffratio::baseline_kernels());
  return tables;
}

std::atomic<const diffratio::Kernels*> in_use = runnable().front();

}  // namespace

const diffratio::Kernels& diffratio_native::kernels() { return *in_use.load(std::memory_order_relaxed); }

namespace {

diffratio::Norm norm_of(const std::string& norm) {
  if (norm == "rms") return diffratio::Norm::kRms;
  if (norm == "layer") return diffratio::Norm::kLayer;
  STD_TORCH_CHECK(norm == "none", "diffratio_native: unknown norm ", norm);
  return diffratio::Norm::kNone;
}

std::string instruction_set() { return kernels().instruction_set; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto* table : runnable()) names.push_back(table->instruction_set);
  return names;
}

void use_instruction_set(std::string name) {
  for (const auto* table : runnable())
    if (name == table->instruction_set) return in_use.store(table, std::memory_order_relaxed);
  STD_TORCH_CHECK(false, "diffratio_native: no ", name, " kernels can run here");
}

void router_logits(Tensor x, Tensor weight, Tensor logits) {
  const int64_t width = weight.numel();
  parallel_for(0, logits.numel(), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().router_logits(element(x), x.data_ptr(), weight.data_ptr(), width, logits.data_ptr(), begin, end);
  });
}

// logits [B, N], offsets [B+1] -> index [T]: sample b keeps offsets[b+1] - offsets[b] tokens, the first
// keep_small[b] of them in a small bin.
void topk_select(Tensor logits, Tensor offsets, std::optional<Tensor> keep_small, Tensor index) {
  const int64_t tokens = logits.size(1);
  const auto* small = static_cast<const int32_t*>(data(keep_small));
  const auto* first = static_cast<const int32_t*>(offsets.data_ptr());
  auto* out = static_cast<int64_t*>(index.data_ptr());
  auto select = [&](const auto* scores) {
    parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        diffratio::topk_select_row(scores + b * tokens, tokens, first[b + 1] - first[b], small ? small[b] : 0,
                                   b * tokens, out + first[b]);
    });
  };
  if (logits.scalar_type() == ScalarType::Double) return select(static_cast<const double*>(logits.data_ptr()));
  select(static_cast<const float*>(logits.data_ptr()));
}

// place [rows]: packed row of each row, -1 where none. Returns the first t whose index is out of range or
// taken already, -1 when all is well.
int64_t row_map(Tensor index, Tensor place) {
  auto* to = static_cast<int32_t*>(place.data_ptr());
  const int64_t count = index.numel(), total = place.numel();
  STD_TORCH_CHECK(count <= INT32_MAX, "diffratio_native: more than 2^31 - 1 kept rows");
  std::fill(to, to + total, -1);
  for (int64_t t = 0; t < count; ++t) {
    const int64_t r = rows(index)[t];
    if (r < 0 || r >= total || to[r] != -1) return t;
    to[r] = static_cast<int32_t>(t);
  }
  return -1;
}

void gather_adaln(Tensor x, Tensor index, int64_t tokens, std::optional<Tensor> groups, Tensor shift, Tensor scale,
                  std::string norm, double eps, std::optional<Tensor> kept, Tensor normed) {
  const diffratio::AdalnArgs args{x.data_ptr(),     rows(index),      kept.has_value(),  tokens,     normed.size(1),
                                  shift.data_ptr(), scale.data_ptr(), norm_of(norm),     eps,        groups_of(groups),
                                  data(kept),       normed.data_ptr()};
  parallel_for(0, index.numel(), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().gather_adaln(element(x), args, begin, end);
  });
}

void gather_adaln_backward(Tensor kept, Tensor index, std::optional<Tensor> place, int64_t tokens,
                           std::optional<Tensor> groups, Tensor scale, std::optional<Tensor> grad_rows,
                           Tensor grad_normed, std::string norm, double eps, Tensor grad_x, Tensor stats,
                           Tensor grad_shift, Tensor grad_scale) {
  const int64_t width = kept.size(1);
  const diffratio::AdalnBackwardArgs args{
      kept.data_ptr(),   rows(index),           place_of(place),       index.numel(), tokens, width,
      scale.data_ptr(),  data(grad_rows),       grad_normed.data_ptr(), norm_of(norm), eps,    groups_of(groups),
      grad_x.data_ptr(), stats.data_ptr(),      grad_shift.data_ptr(), grad_scale.data_ptr()};
  parallel_for(0, grad_x.numel() / std::max<int64_t>(width, 1), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().gather_adaln_backward_rows(element(kept), args, begin, end);
  });
  parallel_for(0, width, kColumnsPerTask, [&](int64_t begin, int64_t end) {
    kernels().gather_adaln_backward_columns(element(kept), args, begin, end);
  });
}

void qk_norm_rope(Tensor query, Tensor key, Tensor value, int64_t heads, int64_t kv_heads, Tensor index,
                  int64_t tokens, std::string norm, bool across_heads, double eps, std::optional<Tensor> query_weight,
                  std::optional<Tensor> key_weight, std::optional<Tensor> query_bias, std::optional<Tensor> key_bias,
                  std::optional<Tensor> cos, std::optional<Tensor> sin, bool halves, std::optional<Tensor> shift,
                  Tensor out) {
  const int64_t width = out.size(2);
  STD_TORCH_CHECK(width <= diffratio::kMaxHeadWidth, "diffratio_native: head_dim ", width, " is too wide");
  const diffratio::QkNormRopeArgs args{
      {query.data_ptr(), query.stride(0), heads, data(query_weight), data(query_bias)},
      {key.data_ptr(), key.stride(0), kv_heads, data(key_weight), data(key_bias)},
      value.data_ptr(),
      value.stride(0),
      rows(index),
      tokens,
      width,
      norm_of(norm),
      across_heads,
      eps,
      data(cos),
      data(sin),
      cos ? cos->size(2) : 1,
      cos ? cos->size(3) : 0,
      cos && cos->size(0) > 1,
      halves,
      place_of(shift),
      out.data_ptr()};
  parallel_for(0, index.numel(), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().qk_norm_rope(element(query), args, begin, end);
  });
}

diffratio::BranchNorm branch_norm(const std::string& norm, const std::optional<Tensor>& weight,
                                  const std::optional<Tensor>& bias, double eps) {
  return {norm_of(norm), data(weight), data(bias), eps};
}

void gate_residual(Tensor hidden, Tensor branch, Tensor gate, Tensor index, int64_t tokens,
                   std::optional<Tensor> groups, std::string norm, std::optional<Tensor> norm_weight,
                   std::optional<Tensor> norm_bias, double norm_eps, Tensor out) {
  const diffratio::GateArgs args{hidden.data_ptr(), branch.data_ptr(), gate.data_ptr(), rows(index),
                                 groups_of(groups), tokens, hidden.size(1),
                                 branch_norm(norm, norm_weight, norm_bias, norm_eps), out.data_ptr()};
  parallel_for(0, index.numel(), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().gate_residual(element(hidden), args, begin, end);
  });
}

void gate_residual_backward(Tensor grad_out, Tensor branch, Tensor gate, Tensor index, int64_t tokens,
                            std::optional<Tensor> groups, std::string norm, std::optional<Tensor> norm_weight,
                            std::optional<Tensor> norm_bias, double norm_eps, Tensor grad_branch,
                            std::optional<Tensor> stats, Tensor sums, std::optional<Tensor> plain_sums) {
  const diffratio::GateBackwardArgs args{
      {nullptr, branch.data_ptr(), gate.data_ptr(), rows(index), groups_of(groups), tokens, branch.size(1),
       branch_norm(norm, norm_weight, norm_bias, norm_eps), nullptr},
      index.numel(),
      grad_out.data_ptr(),
      grad_branch.data_ptr(),
      {data(stats), sums.data_ptr(), data(plain_sums)}};
  parallel_for(0, index.numel(), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().gate_residual_backward_rows(element(branch), args, begin, end);
  });
  parallel_for(0, branch.size(1), kColumnsPerTask, [&](int64_t begin, int64_t end) {
    kernels().gate_residual_backward_columns(element(branch), args, begin, end);
  });
}

void scatter_rescale(Tensor x, Tensor place, int64_t tokens, std::optional<Tensor> groups, Tensor hidden,
                     Tensor branch, Tensor gate, Tensor logits, std::string rescale, double score_scale,
                     std::string norm, std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias,
                     double norm_eps, Tensor out) {
  auto args = scatter_args(x, place, tokens, hidden, branch, gate, logits, rescale, score_scale, out.data_ptr());
  args.groups = groups_of(groups);
  args.norm = branch_norm(norm, norm_weight, norm_bias, norm_eps);
  parallel_for(0, place.numel(), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().scatter_rescale(element(x), args, begin, end);
  });
}

void scatter_rescale_backward(Tensor grad_out, Tensor x, Tensor index, Tensor place, int64_t tokens,
                              std::optional<Tensor> groups, Tensor hidden, Tensor branch, Tensor gate, Tensor logits,
                              std::string rescale, double score_scale, std::string norm,
                              std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, double norm_eps,
                              Tensor grad_x, Tensor grad_hidden, Tensor grad_branch, Tensor grad_logits,
                              std::optional<Tensor> stats, Tensor sums, std::optional<Tensor> plain_sums) {
  diffratio::ScatterBackwardArgs args{
      scatter_args(x, place, tokens, hidden, branch, gate, logits, rescale, score_scale, nullptr),
      rows(index),
      index.numel(),
      grad_out.data_ptr(),
      grad_x.data_ptr(),
      grad_hidden.data_ptr(),
      grad_branch.data_ptr(),
      grad_logits.data_ptr(),
      {data(stats), sums.data_ptr(), data(plain_sums)}};
  args.forward.groups = groups_of(groups);
  args.forward.norm = branch_norm(norm, norm_weight, norm_bias, norm_eps);
  parallel_for(0, place.numel(), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().scatter_rescale_backward_rows(element(x), args, begin, end);
  });
  parallel_for(0, hidden.size(1), kColumnsPerTask, [&](int64_t begin, int64_t end) {
    kernels().scatter_rescale_backward_columns(element(x), args, begin, end);
  });
}

diffratio::ActivationArgs activation_args(const Tensor& gate, const std::optional<Tensor>& value, const std::string& kind,
                                          const std::optional<Tensor>& index, const std::optional<Tensor>& logits,
                                          double score_scale) {
  const auto act = kind == "silu"   ? diffratio::Activation::kSilu
                   : kind == "gelu" ? diffratio::Activation::kGelu
                                    : diffratio::Activation::kGeluTanh;
  STD_TORCH_CHECK(act != diffratio::Activation::kGeluTanh || kind == "gelu_tanh", "diffratio_native: unknown kind ", kind);
  return {act, gate.data_ptr(), gate.stride(0), data(value), value ? value->stride(0) : 0,
          index ? rows(*index) : nullptr, data(logits), score_scale, gate.size(1), nullptr, 0};
}

void activation(Tensor gate, std::optional<Tensor> value, std::string kind, std::optional<Tensor> index,
                std::optional<Tensor> logits, double score_scale, Tensor out) {
  auto args = activation_args(gate, value, kind, index, logits, score_scale);
  args.out = out.data_ptr();
  args.out_stride = out.stride(0);
  parallel_for(0, gate.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().activation(element(gate), args, begin, end);
  });
}

void activation_backward(Tensor grad, Tensor gate, std::optional<Tensor> value, std::string kind,
                         std::optional<Tensor> index, std::optional<Tensor> logits, double score_scale,
                         Tensor grad_gate, std::optional<Tensor> grad_value, std::optional<Tensor> grad_logits) {
  const diffratio::ActivationBackwardArgs args{activation_args(gate, value, kind, index, logits, score_scale),
                                               grad.data_ptr(), grad_gate.data_ptr(), data(grad_value),
                                               data(grad_logits)};
  parallel_for(0, gate.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels().activation_backward(element(gate), args, begin, end);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY(diffratio_native, m) {
  m.def("instruction_set() -> str");
  m.def("instruction_sets() -> str[]");
  m.def("use_instruction_set(str name) -> ()");
  m.def("router_logits(Tensor x, Tensor weight, Tensor(a!) logits) -> ()");
  m.def("topk_select(Tensor logits, Tensor offsets, Tensor? keep_small, Tensor(a!) index) -> ()");
  m.def("row_map(Tensor index, Tensor(a!) place) -> int");
  m.def(
      "gather_adaln(Tensor x, Tensor index, int tokens, Tensor? groups, Tensor shift, Tensor scale, str norm, "
      "float eps, Tensor(a!)? kept, Tensor(b!) normed) -> ()");
  m.def(
      "gather_adaln_backward(Tensor kept, Tensor index, Tensor? place, int tokens, Tensor? groups, Tensor scale, "
      "Tensor? grad_rows, Tensor grad_normed, str norm, float eps, Tensor(a!) grad_x, Tensor(b!) stats, "
      "Tensor(c!) grad_shift, Tensor(d!) grad_scale) -> ()");
  m.def(
      "qk_norm_rope(Tensor query, Tensor key, Tensor value, int heads, int kv_heads, Tensor index, int tokens, "
      "str norm, bool across_heads, float eps, Tensor? query_weight, Tensor? key_weight, Tensor? query_bias, "
      "Tensor? key_bias, Tensor? cos, Tensor? sin, bool halves, Tensor? shift, Tensor(a!) out) -> ()");
  m.def(
      "gate_residual(Tensor hidden, Tensor branch, Tensor gate, Tensor index, int tokens, Tensor? groups, str norm, "
      "Tensor? norm_weight, Tensor? norm_bias, float norm_eps, Tensor(a!) out) -> ()");
  m.def(
      "gate_residual_backward(Tensor grad_out, Tensor branch, Tensor gate, Tensor index, int tokens, Tensor? groups, "
      "str norm, Tensor? norm_weight, Tensor? norm_bias, float norm_eps, Tensor(a!) grad_branch, Tensor(b!)? stats, "
      "Tensor(c!) sums, Tensor(d!)? plain_sums) -> ()");
  m.def(
      "scatter_rescale(Tensor x, Tensor place, int tokens, Tensor? groups, Tensor hidden, Tensor branch, "
      "Tensor gate, Tensor logits, str rescale, float score_scale, str norm, Tensor? norm_weight, "
      "Tensor? norm_bias, float norm_eps, Tensor(a!) out) -> ()");
  m.def(
      "scatter_rescale_backward(Tensor grad_out, Tensor x, Tensor index, Tensor place, int tokens, Tensor? groups, "
      "Tensor hidden, Tensor branch, Tensor gate, Tensor logits, str rescale, float score_scale, str norm, "
      "Tensor? norm_weight, Tensor? norm_bias, float norm_eps, Tensor(a!) grad_x, Tensor(b!) grad_hidden, "
      "Tensor(c!) grad_branch, Tensor(d!) grad_logits, Tensor(e!)? stats, Tensor(f!) sums, "
      "Tensor(g!)? plain_sums) -> ()");
  m.def(
      "activation(Tensor gate, Tensor? value, str kind, Tensor? index, Tensor? logits, float score_scale, "
      "Tensor(a!) out) -> ()");
  m.def(
      "activation_backward(Tensor grad, Tensor gate, Tensor? value, str kind, Tensor? index, Tensor? logits, "
      "float score_scale, Tensor(a!) grad_gate, Tensor(b!)? grad_value, Tensor(c!)? grad_logits) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(diffratio_native, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
  m.impl("instruction_sets", TORCH_BOX(&instruction_sets));
  m.impl("use_instruction_set", TORCH_BOX(&use_instruction_set));
}

STABLE_TORCH_LIBRARY_IMPL(diffratio_native, CPU, m) {
  m.impl("router_logits", TORCH_BOX(&router_logits));
  m.impl("topk_select", TORCH_BOX(&topk_select));
  m.impl("row_map", TORCH_BOX(&row_map));
  m.impl("gather_adaln", TORCH_BOX(&gather_adaln));
  m.impl("gather_adaln_backward", TORCH_BOX(&gather_adaln_backward));
  m.impl("qk_norm_rope", TORCH_BOX(&qk_norm_rope));
  m.impl("gate_residual", TORCH_BOX(&gate_residual));
  m.impl("gate_residual_backward", TORCH_BOX(&gate_residual_backward));
  m.impl("scatter_rescale", TORCH_BOX(&scatter_rescale));
  m.impl("scatter_rescale_backward", TORCH_BOX(&scatter_rescale_backward));
  m.impl("activation", TORCH_BOX(&activation));
  m.impl("activation_backward", TORCH_BOX(&activation_backward));
}
