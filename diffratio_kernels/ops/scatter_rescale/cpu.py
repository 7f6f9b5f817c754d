"""`scatter_rescale` by the C++ row kernels."""

import torch
from torch import Tensor

from ...types import Finish
from ..cpu import accumulation, finish, native, row_map_of


def scatter_rescale(given: Finish) -> Tensor:
    """A new [B, N, D]: kept rows finished and rescaled, the others as in x."""
    x = given.x
    out = torch.empty(x.shape, dtype=x.dtype)
    row_map = row_map_of(given.rows, x.shape[:2].numel())
    native.scatter_rescale(x.contiguous(), row_map, *finish(given), out)
    return out


def scatter_rescale_backward(grad_out: Tensor, given: Finish) -> tuple[Tensor, ...]:
    """Gradients of x, hidden, branch, gate [B, D] and logits [B, N] (the last two in the logits' dtype)."""
    x, exact = given.x, (given.x, given.hidden, given.branch)
    grads = [torch.empty(t.shape, dtype=x.dtype) for t in exact]
    grads += [torch.zeros_like(accumulation(given.gate, x)), torch.empty_like(accumulation(given.logits, x))]
    row_map = row_map_of(given.rows, x.shape[:2].numel())
    native.scatter_rescale_backward(
        grad_out.contiguous(), x.contiguous(), given.rows.index.contiguous(), row_map, *finish(given), *grads
    )
    return tuple(grads)
