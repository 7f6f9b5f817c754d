#include "launch.h"

namespace diffratio::cuda {

DeviceGuard::DeviceGuard(int device) {
  int current;
  check(cudaGetDevice(&current), "cudaGetDevice");
  if (current == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

}  // namespace diffratio::cuda
