"""`two_bin_blend` by the C++ row kernels."""

import torch
from torch import Tensor

from ...types import Finish
from ..cpu import accumulation, finish, native, row_map_of


def two_bin_blend(given: Finish) -> Tensor:
    """A new [B, N, D]: kept rows blended from both bins, finished and rescaled, the others as in x."""
    x = given.x
    out = torch.empty(x.shape, dtype=x.dtype)
    row_map = row_map_of(given.rows, x.shape[:2].numel())
    native.two_bin_blend(x.contiguous(), row_map, *finish(given), out)
    return out


def two_bin_blend_backward(grad_out: Tensor, given: Finish) -> tuple[Tensor, ...]:
    """Gradients of x, hidden [T + S, D], branch, gate and logits; that of weight_large row by row [T]."""
    x, exact = given.x, (given.x, given.hidden, given.branch)
    gate, logits = accumulation(given.gate, x), accumulation(given.logits, x)
    grads = [torch.empty(t.shape, dtype=x.dtype) for t in exact]
    grads += [torch.zeros_like(gate), torch.empty_like(logits), logits.new_empty(given.rows.index.shape[0])]
    row_map = row_map_of(given.rows, x.shape[:2].numel())
    native.two_bin_blend_backward(
        grad_out.contiguous(), x.contiguous(), given.rows.index.contiguous(), row_map, *finish(given), *grads
    )
    return tuple(grads)
