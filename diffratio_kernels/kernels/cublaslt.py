"""The MLP's first product with bias and GELU in cuBLASLt's epilogue, through torch."""

from __future__ import annotations

import torch
from torch import Tensor


def why_not(device_type: str) -> str | None:
    """Why it cannot run on a device, or None: on the CPU this call of torch's is the exact GELU."""
    return None if device_type == "cuda" else f"it is for CUDA tensors, not {device_type}"


def linear_gelu(rows: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """rows [T, D], weight [F, D], bias [F] -> gelu(rows weight^T + bias) [T, F] with the tanh GELU."""
    if out is None:
        out = torch.empty(rows.shape[0], weight.shape[0], dtype=rows.dtype, device=rows.device)
    return torch.ops.aten._addmm_activation.out(bias, rows, weight.t(), use_gelu=True, out=out)
