"""Token-sparse diffusion transformers: importing this registers `torch.ops.diffratio.*`."""

from .ops import adaln, attention, capabilities, gather_adaln, mod_block, route, scatter_rescale
from .reference import kept_tokens

__version__ = "0.1.0"

__all__ = [
    "adaln",
    "attention",
    "capabilities",
    "gather_adaln",
    "kept_tokens",
    "mod_block",
    "route",
    "scatter_rescale",
]
