"""Router logits and exact top-k by the C++ row kernels."""

import torch
from torch import Tensor

from ...types import PackedRows
from ..cpu import accumulation, native, row_map_of
from .reference import cu_seqlens_of


def router_logits(x: Tensor, router_weight: Tensor, router_bias: Tensor | None) -> Tensor:
    """x [B, N, D] -> logits [B, N] fp32 (fp64 for fp64)."""
    weight = accumulation(router_weight, x)
    logits = torch.empty(x.shape[:2], dtype=weight.dtype)
    native.router_logits(x.contiguous(), weight, logits)
    return logits if router_bias is None else logits.add_(router_bias)


def router_logits_backward(grad_logits: Tensor, x: Tensor, router_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x [B, N, D] in its dtype and of router_weight [D] in that of the logits: torch's own."""
    grad_x = (grad_logits[..., None] * router_weight.to(grad_logits.dtype)).to(x.dtype)
    return grad_x, grad_logits.flatten() @ x.to(grad_logits.dtype).flatten(0, 1)


def select(
    logits: Tensor, counts: list[int], counts_small: list[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The counts[b] best tokens of each sample of logits [B, N], in ascending order.

    counts_small: at most as many; each sample's small set comes first, both parts ascending.
    Returns index [T] int64, cu_seqlens [B+1] int32 and row_map [B*N] int32.
    """
    device = logits.device
    index = torch.empty(sum(counts), dtype=torch.int64)
    cu_seqlens = cu_seqlens_of(counts, device)
    small = None if counts_small is None else torch.tensor(counts_small, dtype=torch.int32)
    native.topk_select(logits.contiguous(), cu_seqlens, small, index)
    return index, cu_seqlens, row_map_of(PackedRows(index, logits.shape[1]), logits.numel())
