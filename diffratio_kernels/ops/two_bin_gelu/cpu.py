"""`two_bin_gelu` by the C++ row kernels."""

import torch
from torch import Tensor

from ...types import Bins
from ..cpu import native, two_bins


def two_bin_gelu(pre: Tensor, bins: Bins) -> Tensor:
    """pre [T + S, F] of both bins -> the blend of their GELUs [T, F]."""
    inner = torch.empty(bins.rows, pre.shape[1], dtype=pre.dtype)
    native.two_bin_gelu(pre.contiguous(), *two_bins(bins, pre), inner)
    return inner


def two_bin_gelu_backward(grad: Tensor, pre: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """grad [T, F] -> gradient of pre [T + S, F]; that of weight_large row by row [T]."""
    of_bins = two_bins(bins, pre)
    grad_pre = torch.empty(pre.shape, dtype=pre.dtype)
    weight_dots = torch.empty(grad.shape[0], dtype=of_bins[0].dtype)
    native.two_bin_gelu_backward(grad.contiguous(), pre.contiguous(), *of_bins, grad_pre, weight_dots)
    return grad_pre, weight_dots
