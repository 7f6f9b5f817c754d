"""The MLP's first product and its GELU in eager PyTorch."""

import torch.nn.functional as F
from torch import Tensor

from ...types import Linear


def linear_gelu(rows: Tensor, fc1: Linear) -> Tensor:
    """rows [T, D], fc1 [F, D] -> gelu(fc1(rows)) [T, F] with the tanh GELU."""
    return F.gelu(fc1(rows), approximate="tanh")
