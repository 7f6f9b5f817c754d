"""The MLP's first product and its activation in eager PyTorch."""

from torch import Tensor

from ...types import Linear
from ..activation.reference import activated


def linear_gelu(rows: Tensor, fc1: Linear, kind: str = "gelu_tanh") -> Tensor:
    """rows [T, D], fc1 [F, D] -> act(fc1(rows)) [T, F]."""
    return activated(fc1(rows), kind)
