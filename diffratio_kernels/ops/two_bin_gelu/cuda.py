"""`two_bin_gelu` by the CUDA C++ kernels."""

import torch
from torch import Tensor

from ...types import Bins
from .. import cuda
from ..cuda import stream, two_bins


def two_bin_gelu(pre: Tensor, bins: Bins) -> Tensor:
    """pre [T + S, F] of both bins -> the blend of their GELUs [T, F]."""
    inner = torch.empty(bins.rows, pre.shape[1], dtype=pre.dtype, device=pre.device)
    cuda.operators.two_bin_gelu(pre.contiguous(), *two_bins(bins), inner, stream(pre))
    return inner


def two_bin_gelu_backward(grad: Tensor, pre: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """grad [T, F] -> gradient of pre [T + S, F]; that of weight_large row by row [T], fp32."""
    grad_pre = torch.empty(pre.shape, dtype=pre.dtype, device=pre.device)
    weight_dots = torch.empty(grad.shape[0], dtype=torch.float32, device=pre.device)
    cuda.operators.two_bin_gelu_backward(
        grad.contiguous(), pre.contiguous(), *two_bins(bins), grad_pre, weight_dots, stream(pre)
    )
    return grad_pre, weight_dots
