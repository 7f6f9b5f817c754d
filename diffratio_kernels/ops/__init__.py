"""`torch.ops.diffratio.*`: importing this registers the operators."""

from .adaln import adaln, gather_adaln
from .attention import attention
from .dispatch import IMPLEMENTATIONS, capabilities, choose
from .gate_residual import gate_residual
from .mlp import mlp
from .mod_block import mod_block
from .route import route
from .scatter_rescale import scatter_rescale, scatter_rescale_

__all__ = [
    "IMPLEMENTATIONS",
    "adaln",
    "attention",
    "capabilities",
    "choose",
    "gate_residual",
    "gather_adaln",
    "mlp",
    "mod_block",
    "route",
    "scatter_rescale",
    "scatter_rescale_",
]
