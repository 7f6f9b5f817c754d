"""Products of QuACK (CuTe DSL) with the epilogue of ours that it can express: imported where it is installed.

B is [inner, columns] there, in whatever layout: a weight is given as a view. What is tuned is tuned by QuACK
itself, at the first call of a shape.
"""

from __future__ import annotations

from quack.epi_ops import RowVecLoad
from quack.gemm_epilogue import gemm_epilogue
from quack.gemm_interface import gemm, gemm_act
from torch import Tensor


@gemm_epilogue(ops={"bias": RowVecLoad("bias"), "gate": RowVecLoad("gate")})
def _gated(acc, c, bias, gate):
    return {"D": c + (acc + bias) * gate}


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """inputs [T, inner] through a Linear: [T, columns]."""
    return gemm(inputs, weight.mT, bias=bias)


def mlp(rows: Tensor, fc1: Tensor, bias1: Tensor, fc2: Tensor, bias2: Tensor) -> Tensor:
    """rows [T, D] through an MLP with the tanh GELU: [T, D]."""
    hidden = gemm_act(rows, fc1.mT, bias=bias1, activation="gelu_tanh_approx", store_preact=False)[1]
    return gemm(hidden, fc2.mT, bias=bias2)


def linear_gate_residual(
    hidden: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor, gate: Tensor
) -> Tensor:
    """hidden [B K, D] + gate [B, D] * Linear(inputs [B K, inner]), as a batch of one product a sample."""
    batch = len(gate)
    rows, into = (t.unflatten(0, (batch, -1)) for t in (inputs, hidden))
    weights, biases = weight.mT.expand(batch, -1, -1), bias.expand(batch, -1)
    return _gated(rows, weights, into, bias=biases, gate=gate)["D"].flatten(0, 1)
