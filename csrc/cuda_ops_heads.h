// The same as cuda_ops.h for heads of query and key.
#pragma once

#include "cuda_ops.h"

namespace diffratio::cuda {

// x [T, heads d], its rows at any stride.
template <class Tensor>
HeadsArgs heads_args(const Tensor& x, int64_t heads, const std::optional<Tensor>& weight,
                     const std::optional<Tensor>& bias) {
  return {x.data_ptr(), x.stride(0), static_cast<int>(heads), data(weight), data(bias)};
}

// Weights and biases are all float, or all as query.
template <class Tensor>
QkNormRopeArgs qk_norm_rope_args(const Tensor& query, const Tensor& key, const Tensor& index, int64_t tokens,
                                 int64_t heads, int64_t kv_heads, const std::string& norm, bool across_heads,
                                 double eps, const std::optional<Tensor>& query_weight,
                                 const std::optional<Tensor>& key_weight, const std::optional<Tensor>& query_bias,
                                 const std::optional<Tensor>& key_bias, const std::optional<Tensor>& cos,
                                 const std::optional<Tensor>& sin, bool halves) {
  bool wide = false;
  for (const auto& t : {query_weight, key_weight, query_bias, key_bias})
    wide = wide || (t && element(*t) == Element::kFloat);
  return {.query = heads_args(query, heads, query_weight, query_bias),
          .key = heads_args(key, kv_heads, key_weight, key_bias),
          .value = {},
          .index = data<int64_t>(index),
          .count = index.numel(),
          .tokens = tokens,
          .width = static_cast<int>(query.size(1) / heads),
          .norm = norm_of(norm),
          .across_heads = across_heads,
          .wide_weights = wide,
          .eps = static_cast<float>(eps),
          .cos = static_cast<float*>(data(cos)),
          .sin = static_cast<float*>(data(sin)),
          .table_heads = cos ? static_cast<int>(cos->size(2)) : 1,
          .pairs = cos ? static_cast<int>(cos->size(3)) : 0,
          .table_by_sample = cos && cos->size(0) > 1,
          .halves = halves,
          .shift = nullptr,
          .out = nullptr};
}

template <class Tensor>
void qk_norm_rope(Tensor query, Tensor key, Tensor value, Tensor index, int64_t tokens, int64_t heads,
                  int64_t kv_heads, std::string norm, bool across_heads, double eps,
                  std::optional<Tensor> query_weight, std::optional<Tensor> key_weight,
                  std::optional<Tensor> query_bias, std::optional<Tensor> key_bias, std::optional<Tensor> cos,
                  std::optional<Tensor> sin, bool halves, std::optional<Tensor> shift, Tensor out, int64_t stream) {
  const DeviceGuard guard(query.get_device_index());
  QkNormRopeArgs args = qk_norm_rope_args(query, key, index, tokens, heads, kv_heads, norm, across_heads, eps,
                                          query_weight, key_weight, query_bias, key_bias, cos, sin, halves);
  args.value = heads_args<Tensor>(value, kv_heads, std::nullopt, std::nullopt);
  args.shift = static_cast<int32_t*>(data(shift));
  args.out = out.data_ptr();
  qk_norm_rope(args, element(query), stream_of(stream));
}

// The sums of weights and biases are those of slices (qk_norm_rope_backward.cuh).
template <class Tensor>
void qk_norm_rope_backward(Tensor grad, Tensor query, Tensor key, Tensor index, int64_t tokens, int64_t heads,
                           int64_t kv_heads, std::string norm, bool across_heads, double eps,
                           std::optional<Tensor> query_weight, std::optional<Tensor> key_weight,
                           std::optional<Tensor> query_bias, std::optional<Tensor> key_bias,
                           std::optional<Tensor> cos, std::optional<Tensor> sin, bool halves, Tensor grad_query,
                           Tensor grad_key, std::optional<Tensor> sums_query_weight,
                           std::optional<Tensor> sums_key_weight, std::optional<Tensor> sums_query_bias,
                           std::optional<Tensor> sums_key_bias, int64_t stream) {
  const DeviceGuard guard(query.get_device_index());
  const auto floats = [](const std::optional<Tensor>& t) { return static_cast<float*>(data(t)); };
  qk_norm_rope_backward(
      {.forward = qk_norm_rope_args(query, key, index, tokens, heads, kv_heads, norm, across_heads, eps, query_weight,
                                    key_weight, query_bias, key_bias, cos, sin, halves),
       .grad = grad.data_ptr(),
       .query = {grad_query.data_ptr(), floats(sums_query_weight), floats(sums_query_bias)},
       .key = {grad_key.data_ptr(), floats(sums_key_weight), floats(sums_key_bias)}},
      element(query), stream_of(stream));
}

}  // namespace diffratio::cuda
