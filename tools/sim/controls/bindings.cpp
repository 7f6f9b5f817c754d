#include "python.h"

#include "controls.h"

PYBIND11_MODULE(diffratio_controls, module) {
  using namespace diffratio::controls;
  diffratio::simulator::bind_schedule(module);

  module.def("block_sum", &block_sum);
  module.def("rotate", &rotate);
  module.def("uneven_warps", &uneven_warps);
  module.def("last_block", &last_block);
  module.def("part_of_a_block", &part_of_a_block);
  module.def("two_barriers", &two_barriers);
  module.def("part_of_a_warp", &part_of_a_warp);
  module.def("ended_lane", &ended_lane);
  module.def("foreign_lane", &foreign_lane);
  module.def("short_warp", &short_warp);
  module.def("launch", &launch);

  module.def("unwritten_shared", &unwritten_shared);
  module.def("beyond_the_end", &beyond_the_end);
  module.def("beyond_shared", &beyond_shared);
  module.def("beyond_local", &beyond_local);
  module.def("misaligned", &misaligned);
  module.def("misaligned_shared", &misaligned_shared);
  module.def("overflow", &overflow);

  using diffratio::simulator::Tensor;
  module.def("describe", [](const Tensor& t, const std::optional<Tensor>& other) {
    return std::tuple(reinterpret_cast<uintptr_t>(t.data_ptr()), t.dim(), t.size(-1), t.numel(),
                      static_cast<int>(t.scalar_type()), other.has_value());
  });

  module.def("warp_calls", &warp_calls);
  module.def("barrier_votes", &barrier_votes);
  module.def("atomics", &atomics);
  module.def("from_bits", &from_bits);
  module.def("to_bits", &to_bits);
}
