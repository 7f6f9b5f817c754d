// The executor as a Python module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>

#include "machine.h"

namespace py = pybind11;
using namespace ptx;

using Three = std::array<u32, 3>;

static py::dict launch(const Kernel& kernel, Three grid, Three block, const vector<py::bytes>& parameters,
                       const vector<std::pair<u64, u64>>& ranges, u32 shared, u32 seed, int copies, int products,
                       bool races, bool truncate, bool noise, u32 turn, u32 threads) {
  Launch given(kernel);
  std::copy(grid.begin(), grid.end(), given.grid);
  std::copy(block.begin(), block.end(), given.block);
  given.dynamic_shared = shared, given.seed = seed, given.turn = turn, given.threads = threads;
  given.copies = static_cast<When>(copies), given.products = static_cast<When>(products);
  given.races = races, given.truncate = truncate, given.noise = noise;
  for (auto [begin, end] : ranges) given.ranges.push_back({begin, end});
  std::sort(given.ranges.begin(), given.ranges.end(), [](auto& a, auto& b) { return a.begin < b.begin; });
  given.parameters.resize(kernel.parameter_bytes);
  if (parameters.size() != kernel.parameters.size())
    throw Error(format("%s takes %zu parameters, not %zu", kernel.name.c_str(), kernel.parameters.size(), parameters.size()));
  for (size_t n = 0; n < parameters.size(); n++) {
    std::string_view bytes = parameters[n];
    auto [offset, size] = kernel.parameters[n];
    if (bytes.size() != size) throw Error(format("parameter %zu has %zu bytes instead of %u", n, bytes.size(), size));
    std::memcpy(given.parameters.data() + offset, bytes.data(), size);
  }
  Counts counts;
  {
    py::gil_scoped_release release;
    counts = run(given);
  }
  py::dict out;
  out["instructions"] = counts.instructions;
  out["unfenced"] = counts.unfenced;
  out["overwritten"] = counts.overwritten;
  out["moved"] = counts.moved;
  return out;
}

PYBIND11_MODULE(diffratio_ptx, module) {
  py::register_exception<Error>(module, "PtxError", PyExc_RuntimeError);
  py::class_<Kernel>(module, "Kernel")
      .def(py::init([](const string& text, const string& entry) { return parse(text, entry); }), py::arg("text"),
           py::arg("entry") = "")
      .def_readonly("name", &Kernel::name)
      .def_readonly("parameters", &Kernel::parameters, "offset and bytes of each")
      .def("lines",
           [](const Kernel& kernel) {  // line of an instruction -> whether any lane has executed it
             std::map<int, bool> lines;
             for (auto& i : kernel.code) lines[i.line] |= i.executed;
             return lines;
           })
      .def("launch", &launch, py::arg("grid"), py::arg("block"), py::arg("parameters"), py::arg("ranges"),
           py::kw_only(), py::arg("shared"), py::arg("seed"), py::arg("copies"), py::arg("products"), py::arg("races"),
           py::arg("truncate"), py::arg("noise"), py::arg("turn"), py::arg("threads"));
}
