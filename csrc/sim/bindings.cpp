// The kernels on torch's CPU tensors, under the names and with the arguments that cuda_ops.cpp gives them.
#include "python.h"

PYBIND11_MODULE(diffratio_simulator, module) {
  diffratio::simulator::bind_schedule(module);
}
