"""The differentiable ratio: two routed blocks blended (paper section 3.3)."""

from __future__ import annotations

from torch import Tensor

from .mod_block import mod_block
from .routing import accumulation_dtype


def two_bin_block(
    x: Tensor,
    router_weight: Tensor,
    keep_small: list[int],
    keep_large: list[int],
    weight_large: Tensor,
    *args,
    **kwargs,
) -> Tensor:
    """w_a F(x, k_a) + w_b F(x, k_b) as two separate passes: the definition, not the way to compute it.

    weight_large [B] is w_b (differentiable), w_a = 1 - w_b; other arguments as in `mod_block`.
    """
    dtype = accumulation_dtype(x.dtype)
    weight = weight_large.to(dtype)[:, None, None]
    small = mod_block(x, router_weight, keep_small, *args, **kwargs).to(dtype)
    large = mod_block(x, router_weight, keep_large, *args, **kwargs).to(dtype)
    return ((1 - weight) * small + weight * large).to(x.dtype)
