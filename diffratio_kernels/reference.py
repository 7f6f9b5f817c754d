"""The mathematics in eager PyTorch, operator by operator: any float dtype, differentiable, no kernels."""

from .blocks.bins import bracketing_bins, kept_tokens, snap_to_bins
from .blocks.reference import mod_block, two_bin_block
from .ops.activation.reference import activation
from .ops.adaln.reference import adaln, gather_adaln
from .ops.attention.reference import attention
from .ops.gate_residual.reference import gate_residual
from .ops.route.reference import cu_seqlens_of, router_logits, select_tokens
from .ops.scatter_rescale.reference import scatter_rescale
from .ops.two_bin_attention.reference import two_bin_attention
from .ops.two_bin_blend.reference import two_bin_blend
from .ops.two_bin_gelu.reference import branch_weight, small_rows, two_bin_gelu

__all__ = [
    "activation",
    "adaln",
    "attention",
    "bracketing_bins",
    "branch_weight",
    "cu_seqlens_of",
    "gate_residual",
    "gather_adaln",
    "kept_tokens",
    "mod_block",
    "router_logits",
    "scatter_rescale",
    "select_tokens",
    "small_rows",
    "snap_to_bins",
    "two_bin_attention",
    "two_bin_blend",
    "two_bin_block",
    "two_bin_gelu",
]
