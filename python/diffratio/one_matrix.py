"""q, k and v as the one matrix that `mod_block` takes: joined for a call, and gone with it.

Parameters that were views of a kept matrix would save that copy, but whoever saves a model by storages
(safetensors, accelerate) takes them for one tensor under three names and writes only the first of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def why_not_one_matrix(linears: list[nn.Linear]) -> str | None:
    """Why Linears cannot be one matrix product, None where they can."""
    if len({linear.bias is None for linear in linears}) > 1:
        return "only some of q, k and v have a bias"
    if len({(linear.weight.dtype, linear.weight.device, linear.weight.shape) for linear in linears}) > 1:
        return "q, k and v differ in dtype, device or shape"
    return None


def concatenated(linears: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of the Linears as one tensor each."""
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    return torch.cat([linear.weight for linear in linears]), bias
