// From the arguments of a call to the template that computes it.
#pragma once

#include "diffratio/activation.cuh"
#include "launch.h"

namespace diffratio::cuda {

template <class F> void with_activation(Activation kind, F f) {
  switch (kind) {
    case Activation::kGeluTanh: return f(std::integral_constant<Activation, Activation::kGeluTanh>{});
    case Activation::kGelu: return f(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kSilu: return f(std::integral_constant<Activation, Activation::kSilu>{});
  }
}

// Whether vectors of n elements may be read, and written to `out`.
inline bool vectors_of(const ActivationArgs& a, int n) {
  return a.width % n == 0 && a.gate_stride % n == 0 && a.value_stride % n == 0 && a.out_stride % n == 0 &&
         all_aligned({a.gate, a.value, a.out});
}

}  // namespace diffratio::cuda
