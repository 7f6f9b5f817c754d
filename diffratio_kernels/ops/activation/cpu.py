"""`activation` by the C++ row kernels."""

import torch
from torch import Tensor

from ...types import Gated
from ..cpu import accumulation, native


def activation(given: Gated, out: Tensor | None = None) -> Tensor:
    """act(gate) [T, F], times value, times the score of the row. `out`, which has its columns
    side by side, may be gate or value."""
    if out is None:
        out = torch.empty(given.gate.shape, dtype=given.gate.dtype)
    native.activation(*_operands(given), out)
    return out


def activation_backward(grad: Tensor, given: Gated) -> tuple[Tensor | None, ...]:
    """grad [T, F] -> the gradients of gate and value, and that of logits [B, N] in at least fp32."""
    operands = _operands(given)
    logits, like = operands[4], given.gate
    grad_value = None if given.value is None else torch.empty(like.shape, dtype=like.dtype)
    grads = (
        torch.empty(like.shape, dtype=like.dtype),
        grad_value,
        None if logits is None else torch.zeros_like(logits),
    )
    native.activation_backward(grad.contiguous(), *operands, *grads)
    return grads


def _operands(given: Gated) -> tuple:
    gate, value = (t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (given.gate, given.value))
    index = None if given.index is None else given.index.contiguous()
    logits = None if given.logits is None else accumulation(given.logits, gate)
    return gate, value, given.kind, index, logits, given.score_scale
