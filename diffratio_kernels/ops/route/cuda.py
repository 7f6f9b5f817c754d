"""Router logits and radix top-k by the CUDA C++ kernels."""

import torch
from torch import Tensor

from .. import cuda
from ..cuda import column_sums, fp32, stream
from .cu_seqlens import empty_selection


def router_logits(x: Tensor, router_weight: Tensor, router_bias: Tensor | None) -> Tensor:
    """x [B, N, D] -> logits [B, N] fp32."""
    logits = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    bias = None if router_bias is None else router_bias.float()
    cuda.operators.router_logits(x.contiguous(), fp32(router_weight), bias, logits, stream(x))
    return logits


def router_logits_backward(grad_logits: Tensor, x: Tensor, router_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x [B, N, D] in its dtype and of router_weight [D] in fp32."""
    batch, tokens, width = x.shape
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial, grad_weight = column_sums(x, 1, 1, batch * tokens, width)
    cuda.operators.router_logits_backward(
        fp32(grad_logits), x.contiguous(), fp32(router_weight), grad_x, partial, grad_weight, stream(x)
    )
    return grad_x, grad_weight.flatten()


def select(
    logits: Tensor, counts: list[int], counts_small: list[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As the CPU kernels' `select`, in one launch."""
    index, cu_seqlens, row_map, small, equal = empty_selection(logits, counts, counts_small)
    equal = -1 if equal is None else equal
    cuda.operators.topk_select(logits.contiguous(), equal, cu_seqlens, small, index, row_map, stream(logits))
    return index, cu_seqlens, row_map
