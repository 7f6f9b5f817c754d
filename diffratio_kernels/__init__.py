"""Token-sparse diffusion transformers: importing this registers `torch.ops.diffratio.*`."""

import warnings as _warnings

from . import _native
from ._backends import capabilities
from .blocks.bins import kept_tokens
from .blocks.mod_block import mod_block
from .blocks.two_bin_block import two_bin_block
from .ops.activation.op import activation
from .ops.adaln.op import adaln, gather_adaln
from .ops.attention.op import attention
from .ops.gate_residual.op import gate_residual
from .ops.mlp.op import mlp
from .ops.qk_norm_rope.op import qk_norm_rope
from .ops.route.op import route
from .ops.scatter_rescale.op import scatter_rescale, scatter_rescale_
from .ops.two_bin_attention.op import two_bin_attention
from .ops.two_bin_blend.op import two_bin_blend
from .ops.two_bin_gelu.op import two_bin_gelu

__version__ = "0.1.0"

__all__ = [
    "activation",
    "adaln",
    "attention",
    "capabilities",
    "gate_residual",
    "gather_adaln",
    "kept_tokens",
    "mlp",
    "mod_block",
    "qk_norm_rope",
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
