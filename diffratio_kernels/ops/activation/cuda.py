"""`activation` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import Gated
from .. import cuda
from ..cuda import fp32, stream


def activation(given: Gated, out: Tensor | None = None) -> Tensor:
    """act(gate) [T, F], times value, times the score of the row. `out`, which has its columns
    side by side, may be gate or value."""
    like = given.gate
    if out is None:
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    cuda.operators.activation(*_operands(given), out, stream(like))
    return out


def activation_backward(grad: Tensor, given: Gated) -> tuple[Tensor | None, ...]:
    """grad [T, F] -> the gradients of gate and value, and that of logits [B, N] in fp32."""
    operands, like = _operands(given), given.gate
    logits = operands[4]
    grad_gate = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    grad_value = None if given.value is None else torch.empty_like(grad_gate)
    grad_logits = None if logits is None else torch.zeros_like(logits)
    grads = grad_gate, grad_value, grad_logits
    cuda.operators.activation_backward(grad.contiguous(), *operands, *grads, stream(like))
    return grads


def _operands(given: Gated) -> tuple:
    gate, value = (t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (given.gate, given.value))
    index = None if given.index is None else given.index.contiguous()
    logits = None if given.logits is None else fp32(given.logits)
    return gate, value, given.kind, index, logits, given.score_scale
