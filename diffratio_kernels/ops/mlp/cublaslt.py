"""The MLP's first product with bias and GELU in cuBLASLt's epilogue, through torch. On the CPU this call of
torch's is the exact GELU."""

import torch
from torch import Tensor

from ...types import Linear


def linear_gelu(rows: Tensor, fc1: Linear, out: Tensor | None = None, kind: str = "gelu_tanh") -> Tensor:
    """rows [T, D], fc1 [F, D] with a bias -> gelu(fc1(rows)) [T, F], into `out` where it is given.

    The tanh GELU is the one kind that there is."""
    if out is None:
        out = torch.empty(rows.shape[0], fc1.weight.shape[0], dtype=rows.dtype, device=rows.device)
    return torch.ops.aten._addmm_activation.out(fc1.bias, rows, fc1.weight.t(), use_gelu=True, out=out)
