// In place of the CUDA runtime under the launchers of csrc/cuda, as nvcc compiles them for the host: a launch calls
// back into Python with the kernel's name, its grid and block, and where its arguments lie.
#include <map>
#include <string>
#include <utility>

#include "operators.h"

namespace py = pybind11;

struct Dim3 {
  unsigned x, y, z;
};
static std::map<const void*, std::string> names;  // by the address of the host's stub
static py::object* callback;
static struct {
  Dim3 grid, block;
  size_t shared;
  void* stream;
} configured;  // between <<<...>>> and the call

extern "C" {
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*, void*, void*, void*, int*) {
  names[stub] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  configured = {grid, block, shared, stream};
  return 0;
}
int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void* stream) {
  *grid = configured.grid, *block = configured.block, *shared = configured.shared;
  *static_cast<void**>(stream) = configured.stream;
  return 0;
}
int cudaLaunchKernel(const void* stub, Dim3 grid, Dim3 block, void** arguments, size_t shared, void*) {
  (*callback)(names.at(stub), py::make_tuple(grid.x, grid.y, grid.z), py::make_tuple(block.x, block.y, block.z), shared,
              reinterpret_cast<uintptr_t>(arguments));
  return 0;
}
int __cudaGetKernel(const void** kernel, const void* stub) {
  *kernel = stub;
  return 0;
}
int __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared, void* stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
int cudaGetLastError() { return 0; }
const char* cudaGetErrorString(int) { return "no error"; }
int cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}
int cudaSetDevice(int) { return 0; }
}

PYBIND11_MODULE(diffratio_cuda_on_ptx, module) {
  module.def("on_launch", [](py::object f) { delete std::exchange(callback, new py::object(std::move(f))); });
  diffratio::simulator::bind_operators(module);
}
