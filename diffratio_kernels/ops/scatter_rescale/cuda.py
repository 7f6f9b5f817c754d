"""`scatter_rescale` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import Finish
from .. import cuda
from ..branch_norm import gradients
from ..cuda import RowSums, finish, groups_of, row_map_of, stream


def scatter_rescale(given: Finish) -> Tensor:
    """A new [B, N, D]: kept rows finished and rescaled, the others as in x."""
    x = given.x.contiguous()
    out = torch.empty_like(x)
    places = row_map_of(given.rows, x.shape[:2].numel()), None, x.shape[1], groups_of(given.rows)
    cuda.operators.scatter_rescale(x, *places, *finish(given), out, stream(x))
    return out


def scatter_rescale_(given: Finish) -> None:
    """The same into x itself, which must be contiguous: only the kept rows are touched."""
    x, places = given.x, (None, given.rows.index.contiguous(), given.x.shape[1], groups_of(given.rows))
    cuda.operators.scatter_rescale(x, *places, *finish(given), x, stream(x))


def scatter_rescale_backward(grad_out: Tensor, given: Finish) -> tuple[Tensor | None, ...]:
    """As the CPU kernels' `scatter_rescale_backward`."""
    x, exact = given.x, (given.x, given.hidden, given.branch)
    (batch, tokens, width), norm = x.shape, given.norm
    grads = [torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in exact]
    grad_logits = torch.empty(batch, tokens, dtype=torch.float32, device=x.device)
    sums = RowSums(x, 1 if norm is None else 2, given.rows, given.gate.shape[0], width)
    stats = None if norm is None else grad_logits.new_empty(given.branch.shape[0], 2)
    cuda.operators.scatter_rescale_backward(
        grad_out.contiguous(), x.contiguous(), row_map_of(given.rows, batch * tokens), tokens,
        *sums.places(), *finish(given), *grads, stats, sums.partial, sums.sums, grad_logits, stream(x),
    )  # fmt: skip
    normed, plain = sums.sums[0], None if norm is None else sums.sums[1]
    grad_gate, *of_norm = gradients(given.gate, norm, normed, plain)
    return *grads, grad_gate, grad_logits, *of_norm
