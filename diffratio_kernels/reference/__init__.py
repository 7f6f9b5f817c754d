"""The mathematics in eager PyTorch: any float dtype, differentiable, no kernels. The oracle of every test."""

from .attention import attention
from .mod_block import adaln, gate_residual, gather_adaln, mod_block, scatter_rescale
from .ratio import bracketing_bins, kept_tokens, nearest_bin
from .routing import packed_offsets, route, router_logits, select_tokens
from .two_bin import branch_weight, small_rows, two_bin_attention, two_bin_blend, two_bin_block, two_bin_gelu

__all__ = [
    "adaln",
    "attention",
    "bracketing_bins",
    "branch_weight",
    "gate_residual",
    "gather_adaln",
    "kept_tokens",
    "mod_block",
    "nearest_bin",
    "packed_offsets",
    "route",
    "router_logits",
    "scatter_rescale",
    "select_tokens",
    "small_rows",
    "two_bin_attention",
    "two_bin_blend",
    "two_bin_block",
    "two_bin_gelu",
]
