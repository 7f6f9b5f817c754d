#include "operators.h"

PYBIND11_MODULE(diffratio_simulator, module) {
  diffratio::simulator::bind_schedule(module);
  diffratio::simulator::bind_operators(module);
}
