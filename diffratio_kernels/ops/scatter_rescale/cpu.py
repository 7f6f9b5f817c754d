"""`scatter_rescale` by the C++ row kernels."""

import torch
from torch import Tensor

from ...types import Finish
from ..branch_norm import gradients
from ..cpu import GateSums, accumulation, finish, native, row_map_of


def scatter_rescale(given: Finish) -> Tensor:
    """A new [B, N, D]: kept rows finished and rescaled, the others as in x."""
    x = given.x
    out = torch.empty(x.shape, dtype=x.dtype)
    row_map = row_map_of(given.rows, x.shape[:2].numel())
    native.scatter_rescale(x.contiguous(), row_map, *finish(given), out)
    return out


def scatter_rescale_backward(grad_out: Tensor, given: Finish) -> tuple[Tensor | None, ...]:
    """Gradients of x, hidden and branch; of gate [B or G, D], logits [B, N] and the norm's weight and bias
    [D] in fp32 or fp64."""
    x, exact = given.x, (given.x, given.hidden, given.branch)
    grads = [torch.empty(t.shape, dtype=x.dtype) for t in exact]
    grad_logits = torch.empty_like(accumulation(given.logits, x))
    row_map, sums = (
        row_map_of(given.rows, x.shape[:2].numel()),
        GateSums(given.gate, given.branch, given.norm),
    )
    native.scatter_rescale_backward(
        grad_out.contiguous(), x.contiguous(), given.rows.index.contiguous(), row_map, *finish(given),
        *grads, grad_logits, *sums.outputs(),
    )  # fmt: skip
    grad_gate, *of_norm = gradients(given.gate, given.norm, sums.normed, sums.plain)
    return *grads, grad_gate, grad_logits, *of_norm
