"""`two_bin_blend` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import Finish
from .. import cuda
from ..cuda import column_sums, finish, row_map_of, stream


def two_bin_blend(given: Finish) -> Tensor:
    """A new [B, N, D]: kept rows blended from both bins, finished and rescaled, the others as in x."""
    x = given.x
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    row_map = row_map_of(given.rows, x.shape[:2].numel())
    cuda.operators.two_bin_blend(x.contiguous(), row_map, x.shape[1], *finish(given), out, stream(x))
    return out


def two_bin_blend_backward(grad_out: Tensor, given: Finish) -> tuple[Tensor, ...]:
    """Gradients of x, hidden [T + S, D], branch, gate [B, D] and logits [B, N]; that of weight_large row by
    row [T]. The last three are fp32."""
    x, exact = given.x, (given.x, given.hidden, given.branch)
    batch, tokens, width = x.shape
    grads = [torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in exact]
    grad_logits = torch.empty(batch, tokens, dtype=torch.float32, device=x.device)
    weight_dots = torch.empty(given.branch.shape[0], dtype=torch.float32, device=x.device)
    partial, grad_gate = column_sums(x, 1, batch, tokens, width)
    cuda.operators.two_bin_blend_backward(
        grad_out.contiguous(), x.contiguous(), row_map_of(given.rows, batch * tokens), tokens,
        *finish(given), *grads, partial, grad_gate, grad_logits, weight_dots, stream(x),
    )  # fmt: skip
    return *grads, grad_gate[0], grad_logits, weight_dots
