// Compiled once per instruction set (see CMakeLists.txt); DIFFRATIO_TABLE names the table that results.
// No torch and no inline library code in here: an inline function compiled for AVX-512 could be the copy
// that the linker keeps for everybody.
#include "kernels.h"

#include "activation.h"
#include "gate_residual.h"
#include "gather_adaln.h"
#include "qk_norm_rope.h"
#include "router_logits.h"
#include "scatter_rescale.h"
#include "two_bin_blend.h"
#include "two_bin_gelu.h"

namespace diffratio {
namespace {

template <typename F>
void for_element(Element element, F&& body) {
  switch (element) {
    case Element::kFloat: return body(float{});
    case Element::kDouble: return body(double{});
    case Element::kBFloat16: return body(BFloat16{});
    case Element::kHalf: return body(Half{});
  }
}

template <typename F>
void for_element_and_rescale(Element element, Rescale rescale, F&& body) {
  for_element(element, [&](auto zero) {
    using T = decltype(zero);
    switch (rescale) {
      case Rescale::kMlp: return body.template operator()<T, Rescale::kMlp>();
      case Rescale::kResidual: return body.template operator()<T, Rescale::kResidual>();
      case Rescale::kOutput: return body.template operator()<T, Rescale::kOutput>();
      case Rescale::kNone: return body.template operator()<T, Rescale::kNone>();
    }
  });
}

template <typename F>
void for_element_and_norm(Element element, const BranchNorm& norm, F&& body) {
  for_element(element, [&](auto zero) {
    using T = decltype(zero);
    if (norm.kind == Norm::kNone) return body.template operator()<T, false>();
    body.template operator()<T, true>();
  });
}

template <typename F>
void for_element_and_activation(Element element, Activation kind, F&& body) {
  for_element(element, [&](auto zero) {
    using T = decltype(zero);
    switch (kind) {
      case Activation::kGeluTanh: return body.template operator()<T, Gelu>();
      case Activation::kGelu: return body.template operator()<T, ExactGelu>();
      case Activation::kSilu: return body.template operator()<T, Silu>();
    }
  });
}

constexpr const char* instruction_set =
#if defined(__AVX512F__)
    "avx512";
#elif defined(__AVX2__)
    "avx2";
#else
    "baseline";
#endif

const Kernels table = {
    instruction_set,
    [](Element e, const void* x, const void* weight, int64_t width, void* logits, int64_t begin, int64_t end) {
      for_element(e, [&](auto zero) {
        using T = decltype(zero);
        using A = acc_t<T>;
        router_logits<T>(static_cast<const T*>(x), static_cast<const A*>(weight), width,
                         static_cast<A*>(logits), begin, end);
      });
    },
    [](Element e, const AdalnArgs& a, int64_t begin, int64_t end) {
      for_element(e, [&](auto zero) { gather_adaln<decltype(zero)>(a, begin, end); });
    },
    [](Element e, const AdalnBackwardArgs& a, int64_t begin, int64_t end) {
      for_element(e, [&](auto zero) { gather_adaln_backward_rows<decltype(zero)>(a, begin, end); });
    },
    [](Element e, const AdalnBackwardArgs& a, int64_t begin, int64_t end) {
      for_element(e, [&](auto zero) { gather_adaln_backward_columns<decltype(zero)>(a, begin, end); });
    },
    [](Element e, const QkNormRopeArgs& a, int64_t begin, int64_t end) {
      for_element(e, [&](auto zero) { qk_norm_rope<decltype(zero)>(a, begin, end); });
    },
    [](Element e, const GateArgs& a, int64_t begin, int64_t end) {
      for_element_and_norm(e, a.norm, [&]<typename T, bool normed>() { gate_residual<T, normed>(a, begin, end); });
    },
    [](Element e, const GateBackwardArgs& a, int64_t begin, int64_t end) {
      for_element_and_norm(e, a.forward.norm, [&]<typename T, bool normed>() {
        gate_residual_backward_rows<T, normed>(a, begin, end);
      });
    },
    [](Element e, const GateBackwardArgs& a, int64_t begin, int64_t end) {
      for_element_and_norm(e, a.forward.norm, [&]<typename T, bool normed>() {
        gate_residual_backward_columns<T, normed>(a, begin, end);
      });
    },
    [](Element e, const ScatterArgs& a, int64_t begin, int64_t end) {
      for_element_and_rescale(e, a.rescale, [&]<typename T, Rescale mode>() {
        a.norm.kind == Norm::kNone ? scatter_rescale<T, mode, false>(a, begin, end)
                                   : scatter_rescale<T, mode, true>(a, begin, end);
      });
    },
    [](Element e, const ScatterBackwardArgs& a, int64_t begin, int64_t end) {
      for_element_and_rescale(e, a.forward.rescale, [&]<typename T, Rescale mode>() {
        a.forward.norm.kind == Norm::kNone ? scatter_rescale_backward_rows<T, mode, false>(a, begin, end)
                                           : scatter_rescale_backward_rows<T, mode, true>(a, begin, end);
      });
    },
    [](Element e, const ScatterBackwardArgs& a, int64_t begin, int64_t end) {
      for_element_and_rescale(e, a.forward.rescale, [&]<typename T, Rescale mode>() {
        a.forward.norm.kind == Norm::kNone ? scatter_rescale_backward_columns<T, mode, false>(a, begin, end)
                                           : scatter_rescale_backward_columns<T, mode, true>(a, begin, end);
      });
    },
    [](Element e, const ActivationArgs& a, int64_t begin, int64_t end) {
      for_element_and_activation(e, a.kind, [&]<typename T, template <typename> typename Act>() {
        activation<T, Act>(a, begin, end);
      });
    },
    [](Element e, const ActivationBackwardArgs& a, int64_t begin, int64_t end) {
      for_element_and_activation(e, a.forward.kind, [&]<typename T, template <typename> typename Act>() {
        activation_backward<T, Act>(a, begin, end);
      });
    },
    [](Element e, const TwoBinGeluArgs& a, int64_t begin, int64_t end) {
      for_element(e, [&](auto zero) { two_bin_gelu<decltype(zero)>(a, begin, end); });
    },
    [](Element e, const TwoBinGeluBackwardArgs& a, int64_t begin, int64_t end) {
      for_element(e, [&](auto zero) { two_bin_gelu_backward<decltype(zero)>(a, begin, end); });
    },
    [](Element e, const TwoBinBlendArgs& a, int64_t begin, int64_t end) {
      for_element_and_rescale(e, a.scatter.rescale, [&]<typename T, Rescale mode>() {
        two_bin_blend<T, mode>(a, begin, end);
      });
    },
    [](Element e, const TwoBinBlendBackwardArgs& a, int64_t begin, int64_t end) {
      for_element_and_rescale(e, a.scatter.forward.rescale, [&]<typename T, Rescale mode>() {
        two_bin_blend_backward_rows<T, mode>(a, begin, end);
      });
    },
};

}  // namespace

const Kernels& DIFFRATIO_TABLE() { return table; }

}  // namespace diffratio
