// What the bindings see of a torch tensor: the part of torch::stable::Tensor that launchers use.
#pragma once

#include <cstdint>
#include <vector>

namespace diffratio::simulator {

enum class ScalarType { Bool, Byte, Int, Long, Half, BFloat16, Float, Double };

class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, std::vector<int64_t> shape, std::vector<int64_t> strides, ScalarType type)
      : data_(data), shape_(std::move(shape)), strides_(std::move(strides)), type_(type) {}

  void* data_ptr() const { return data_; }
  ScalarType scalar_type() const { return type_; }
  int64_t dim() const { return static_cast<int64_t>(shape_.size()); }
  int64_t size(int64_t d) const { return shape_.at(static_cast<size_t>(d < 0 ? d + dim() : d)); }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t s : shape_) n *= s;
    return n;
  }
  int64_t stride(int64_t d) const { return strides_.at(static_cast<size_t>(d < 0 ? d + dim() : d)); }
  int32_t get_device_index() const { return 0; }

 private:
  void* data_ = nullptr;
  std::vector<int64_t> shape_, strides_;
  ScalarType type_ = ScalarType::Float;
};

}  // namespace diffratio::simulator
