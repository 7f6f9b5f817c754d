"""`torch.ops.diffratio.*`: importing this registers the operators."""

from ..reference.ratio import DEFAULT_BINS, bracketing_bins, nearest_bin
from .adaln import adaln, gather_adaln
from .attention import attention
from .autocast import autocast_is_on
from .dispatch import IMPLEMENTATIONS, capabilities, choose
from .gate_residual import gate_residual
from .mlp import mlp
from .mod_block import mod_block, mod_block_next
from .route import route
from .scatter_rescale import scatter_rescale, scatter_rescale_
from .two_bin_attention import two_bin_attention
from .two_bin_blend import two_bin_blend
from .two_bin_block import two_bin_block
from .two_bin_gelu import two_bin_gelu

__all__ = [
    "DEFAULT_BINS",
    "IMPLEMENTATIONS",
    "adaln",
    "attention",
    "autocast_is_on",
    "bracketing_bins",
    "capabilities",
    "choose",
    "gate_residual",
    "gather_adaln",
    "mlp",
    "mod_block",
    "mod_block_next",
    "nearest_bin",
    "route",
    "scatter_rescale",
    "scatter_rescale_",
    "two_bin_attention",
    "two_bin_blend",
    "two_bin_block",
    "two_bin_gelu",
]
