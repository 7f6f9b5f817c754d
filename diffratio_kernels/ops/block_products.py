"""The products of a block that end in its residual stream: the library's with a row step after it, or without
a gradient one kernel for both, where the table of tiles says that it is faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import cublaslt
from ..kernels.triton import config
from ..kernels.triton import launchers as triton
from .dispatch import DIFFERENTIABLE, why_not
from .mlp import pick_mlp


def _start_of(buffer: Tensor, rows: int, width: int) -> Tensor:
    return buffer.as_strided((rows, width), (width, 1))


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor | None) -> Tensor:
    """F.linear, into the start of a buffer where one is given."""
    if buffer is None:
        return F.linear(rows, weight, bias)
    out, width = _start_of(buffer, rows.shape[0], weight.shape[0]), rows.shape[1]
    # The CPU's sgemm is faster, and as fast with few rows as with many, on slabs of about D columns.
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.shape[0] >= 128:
        for first in range(0, weight.shape[0], width):
            slab = slice(first, first + width)
            _product(rows, weight[slab], None if bias is None else bias[slab], out[:, slab])
        return out
    return _product(rows, weight, bias, out)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(rows, weight.t(), out=out)
    return torch.addmm(bias, rows, weight.t(), out=out)


@dataclass(frozen=True)
class Products:
    """implementation: "triton" (always one kernel), "reference" (never) or "auto" (as the table says).
    in_place: buffers are reused (no gradient, no autocast). whole_rows: what puts rows back needs whole ones,
    which no tile of a product holds."""

    implementation: str
    in_place: bool
    gate_residual: Callable
    scatter_rescale: Callable
    whole_rows: bool = False

    def linear_gate_residual(self, hidden, rows, weight, bias, gate, index, tokens, keep, buffer) -> Tensor:
        """hidden + gate * (rows weight^T + bias), without a gate hidden + rows weight^T + bias.

        Where it is one kernel, `hidden` may be x [B, N, D], with the rows of hidden at the index.
        """
        if self.is_one_kernel("linear_gate_residual", hidden, rows.shape[0], weight):
            operands = hidden, rows, weight, bias, gate, index, tokens
            return triton.linear_gate_residual(*operands, in_place=hidden.dim() == 2)
        branch = linear(rows, weight, bias, buffer)
        if gate is not None:
            return self.gate_residual(hidden, branch, gate, index, tokens, keep)
        return hidden.add_(branch) if self.in_place else (hidden + branch).to(hidden.dtype)

    def mlp(self, rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias, buffer) -> Callable[..., Tensor]:
        """What finishes the rows and puts them back: a function of the other arguments of scatter_rescale.

        The caller lets go of rows and buffer before it calls that.
        """
        if not self.in_place:
            kernel = DIFFERENTIABLE["mlp"][pick_mlp(self.mlp_implementation, rows, fc1_bias, gradient=True)]
            return partial(self._put, kernel(rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias))
        inner = self._inner(rows, fc1_weight, fc1_bias, buffer)
        if not self.whole_rows and self.is_one_kernel("linear_scatter", inner, inner.shape[0], fc2_weight):
            return partial(self._put_product, inner, fc2_weight, fc2_bias)
        return partial(self._put, linear(inner, fc2_weight, fc2_bias, rows))

    @property
    def mlp_implementation(self) -> str:
        return "torch" if self.implementation == "reference" else self.implementation

    def is_one_kernel(self, kernel: str, like: Tensor, rows: int, weight: Tensor) -> bool:
        """Whether the product of so many rows [T, K], of the dtype and device of `like`, with weight [F, K]
        takes the kernel with an epilogue."""
        if not self.in_place or self.implementation != "auto":
            return self.in_place and self.implementation == "triton"
        half = like.dtype in (torch.float16, torch.bfloat16)  # in fp32 Triton's products have no matrix units
        if not half or like.device.type != "cuda" or why_not("triton", "cuda", like.dtype):
            return False
        columns, inner = weight.shape
        return config.beats_library(kernel, like.device, columns, rows, inner)

    def _inner(self, rows, weight, bias, buffer) -> Tensor:
        chosen = pick_mlp(self.mlp_implementation, rows, bias, gradient=False)
        inner = _start_of(buffer, rows.shape[0], weight.shape[0])
        if chosen == "cublaslt":
            cublaslt.linear_gelu(rows, weight, bias, inner)
        elif chosen == "triton":
            triton.linear_gelu(rows, weight, bias, False, inner)
        else:
            torch.ops.aten.gelu_(linear(rows, weight, bias, buffer), approximate="tanh")
        return inner

    def _put(self, branch, x, index, hidden, *rest) -> Tensor:
        return self.scatter_rescale(x, index, hidden, branch.to(x.dtype), *rest)

    @staticmethod
    def _put_product(inner, weight, bias, x, index, hidden, *rest) -> Tensor:
        return triton.linear_scatter(x, index, hidden, inner, weight, bias, *rest)
