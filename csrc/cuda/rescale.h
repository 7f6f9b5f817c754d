// From the rescale mode of a call to the template that computes it.
#pragma once

#include "launch.h"

namespace diffratio::cuda {

// kNone is kMlp with a factor of 1, which the kernel sees from its arguments.
template <class F> void with_rescale(Rescale rescale, F f) {
  switch (rescale) {
    case Rescale::kMlp:
    case Rescale::kNone: return f(std::integral_constant<Rescale, Rescale::kMlp>{});
    case Rescale::kResidual: return f(std::integral_constant<Rescale, Rescale::kResidual>{});
    case Rescale::kOutput: return f(std::integral_constant<Rescale, Rescale::kOutput>{});
  }
}

}  // namespace diffratio::cuda
