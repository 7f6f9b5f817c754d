"""`scatter_rescale` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import Finish
from .. import cuda
from ..cuda import column_sums, finish, row_map_of, stream


def scatter_rescale(given: Finish) -> Tensor:
    """A new [B, N, D]: kept rows finished and rescaled, the others as in x."""
    x = given.x.contiguous()
    out = torch.empty_like(x)
    row_map = row_map_of(given.rows, x.shape[:2].numel())
    cuda.operators.scatter_rescale(x, row_map, None, x.shape[1], *finish(given), out, stream(x))
    return out


def scatter_rescale_(given: Finish) -> None:
    """The same into x itself, which must be contiguous: only the kept rows are touched."""
    x, index = given.x, given.rows.index.contiguous()
    cuda.operators.scatter_rescale(x, None, index, x.shape[1], *finish(given), x, stream(x))


def scatter_rescale_backward(grad_out: Tensor, given: Finish) -> tuple[Tensor, ...]:
    """Gradients of x, hidden, branch, gate [B, D] and logits [B, N] (the last two fp32)."""
    x, exact = given.x, (given.x, given.hidden, given.branch)
    batch, tokens, width = x.shape
    grads = [torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in exact]
    grad_logits = torch.empty(batch, tokens, dtype=torch.float32, device=x.device)
    partial, grad_gate = column_sums(x, 1, batch, tokens, width)
    cuda.operators.scatter_rescale_backward(
        grad_out.contiguous(), x.contiguous(), row_map_of(given.rows, batch * tokens), tokens,
        *finish(given), *grads, partial, grad_gate, grad_logits, stream(x),
    )  # fmt: skip
    return *grads, grad_gate[0], grad_logits
