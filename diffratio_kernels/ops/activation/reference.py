"""`activation` in eager PyTorch."""

import torch.nn.functional as F
from torch import Tensor

from ...types import Gated
from ..route.reference import accumulation_dtype


def activated(gate: Tensor, kind: str) -> Tensor:
    """act(gate), one of the `ACTIVATIONS`."""
    if kind == "silu":
        return F.silu(gate)
    return F.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none")


def activation(given: Gated, out: Tensor | None = None) -> Tensor:
    """act(gate) [T, F], times value, times the score of the row: in at least fp32, with one rounding at the
    end. Into `out` where it is given."""
    dtype = accumulation_dtype(given.gate.dtype)
    inner = activated(given.gate.to(dtype), given.kind)
    if given.value is not None:
        inner = inner * given.value.to(dtype)
    if given.logits is not None:
        score = given.score_scale * given.logits.reshape(-1)[given.index].to(dtype).sigmoid()
        inner = inner * score[:, None]
    return inner.to(given.gate.dtype) if out is None else out.copy_(inner)
