"""`torch.ops.diffratio.*`: importing this registers the operators."""

from .adaln import adaln, gather_adaln
from .attention import attention
from .dispatch import IMPLEMENTATIONS, capabilities, choose
from .mod_block import mod_block
from .route import route
from .scatter_rescale import scatter_rescale

__all__ = [
    "IMPLEMENTATIONS",
    "adaln",
    "attention",
    "capabilities",
    "choose",
    "gather_adaln",
    "mod_block",
    "route",
    "scatter_rescale",
]
