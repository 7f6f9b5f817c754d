"""Token-sparse diffusion transformers: importing this registers `torch.ops.diffratio.*`."""

import warnings as _warnings

from .kernels import native as _native
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

if _native.unavailable is not None:
    _warnings.warn(
        "diffratio_kernels has no native library, on the CPU it computes by the slower reference: "
        f"{_native.unavailable}; install it again with DIFFRATIO_BUILD_NATIVE=1 to see what its build lacks",
        RuntimeWarning,
        stacklevel=2,
    )
