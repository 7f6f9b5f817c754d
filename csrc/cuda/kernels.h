// The launchers: choose element type, vectors or elements, grid and block, and launch on a stream (a
// cudaStream_t) of the current device. Empty inputs launch nothing; a failed launch throws.
#pragma once

#include "diffratio/arguments.h"

namespace diffratio::cuda {

using Stream = void*;

void router_logits(const RouterLogitsArgs&, Element, Stream);
void router_logits_backward(const RouterLogitsBackwardArgs&, Element, Stream);
void topk_select(const TopkArgs&, Stream);
void row_map(const PlacesArgs&, Stream);
void gather_adaln(const AdalnArgs&, Element, Stream);
void gather_adaln_backward(const AdalnBackwardArgs&, Element, Stream);
void qk_norm_rope(const QkNormRopeArgs&, Element, Stream);
void qk_norm_rope_backward(const QkNormRopeBackwardArgs&, Element, Stream);
void activation(const ActivationArgs&, Element, Stream);
void activation_backward(const ActivationBackwardArgs&, Element, Stream);
void gate_residual(const GateResidualArgs&, Element, Stream);
void gate_residual_backward(const GateResidualBackwardArgs&, Element, Stream);
void scatter_rescale(const ScatterArgs&, const ScatterMore&, Element, Stream);
void scatter_rescale_backward(const ScatterBackwardArgs&, const ScatterMore&, Element, Stream);
void two_bin_gelu(const TwoBinGeluArgs&, Element, Stream);
void two_bin_gelu_backward(const TwoBinGeluBackwardArgs&, Element, Stream);
void two_bin_blend(const TwoBinBlendArgs&, Element, Stream);
void two_bin_blend_backward(const TwoBinBlendBackwardArgs&, Element, Stream);

// Makes a device the current one for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;  // -1: it was the current one already
};

}  // namespace diffratio::cuda
