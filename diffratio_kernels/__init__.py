"""Token-sparse diffusion transformers: importing this registers `torch.ops.diffratio.*`."""

from .ops import (
    adaln,
    attention,
    capabilities,
    gate_residual,
    gather_adaln,
    mlp,
    mod_block,
    mod_block_next,
    route,
    scatter_rescale,
    scatter_rescale_,
    two_bin_attention,
    two_bin_blend,
    two_bin_block,
    two_bin_gelu,
)
from .reference import kept_tokens

__version__ = "0.1.0"

__all__ = [
    "adaln",
    "attention",
    "capabilities",
    "gate_residual",
    "gather_adaln",
    "kept_tokens",
    "mlp",
    "mod_block",
    "mod_block_next",
    "route",
    "scatter_rescale",
    "scatter_rescale_",
    "two_bin_attention",
    "two_bin_blend",
    "two_bin_block",
    "two_bin_gelu",
]
