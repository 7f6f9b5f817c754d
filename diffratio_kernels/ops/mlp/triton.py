"""The MLP's first product with GELU (tanh) as its epilogue, and the second product's backward with GELU's.

Each saves a pass over [T, F]: the activation is computed where the accumulator is read, and its derivative
is applied where the incoming gradient is made. The activation is never kept for the backward pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import launch
from ..._triton.matmul import grouped_tile, product, product_options
from ...types import Linear


@triton.jit
def gelu(x):
    """GELU of x and its slope: 0.5 (1 + tanh u) = sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    twice = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    decay = tl.exp(-tl.abs(twice))
    near = 1 / (1 + decay)
    gate = near * tl.where(twice < 0, decay, 1.0)
    both = decay * near * near  # gate (1 - gate); 1 - gate itself has no digits left where gate is near 1
    slope = 1.5957691216057308 * (1 + 3 * 0.044715 * x * x)
    return x * gate, gate + x * both * slope


@triton.jit
def _linear_gelu(
    x_ptr, weight_ptr, bias_ptr, pre_ptr, out_ptr, grad_pre_ptr, rows,
    K: tl.constexpr, F: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_F: tl.constexpr, BACKWARD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """x [T, K] times weight [K, F] of any strides. Forward: pre = product + bias, out = gelu(pre); BACKWARD:
    grad_pre = product * gelu'(pre), out = gelu(pre)."""
    row, column = grouped_tile(rows, F, BLOCK_M, BLOCK_N, GROUP)
    total = product(x_ptr, weight_ptr, row, column, rows, K, F, STRIDE_K, STRIDE_F, BLOCK_N, BLOCK_K)
    f = column + tl.arange(0, BLOCK_N)[None, :]
    inside = (row < rows) & (f < F)
    at = row * F + f
    dtype = out_ptr.dtype.element_ty
    if BACKWARD:
        activation, slope = gelu(tl.load(pre_ptr + at, mask=inside, other=0.0).to(tl.float32))
        tl.store(grad_pre_ptr + at, (total * slope).to(dtype), mask=inside)
    else:
        if bias_ptr is not None:
            total += tl.load(bias_ptr + f, mask=f < F, other=0.0).to(tl.float32)
        if pre_ptr is not None:
            tl.store(pre_ptr + at, total.to(dtype), mask=inside)
        activation, slope = gelu(total)
    tl.store(out_ptr + at, activation.to(dtype), mask=inside)


def linear_gelu(rows: Tensor, fc1: Linear, out: Tensor | None = None, pre: Tensor | None = None) -> Tensor:
    """rows [T, D], fc1 [F, D] -> gelu(fc1(rows)) [T, F], into `out` where it is given.

    What gelu is given, which the backward pass needs, is written into `pre` where it is given.
    """
    if out is None:
        out = torch.empty(rows.shape[0], fc1.weight.shape[0], dtype=rows.dtype, device=rows.device)
    bias = None if fc1.bias is None else fc1.bias.contiguous()
    grid, options = product_options("linear_gelu", rows, fc1.weight.t())
    operands = rows.contiguous(), fc1.weight.t(), bias, pre, out, None
    launch(_linear_gelu, grid, *operands, rows.shape[0], BACKWARD=False, **options)
    return out


def linear_gelu_backward(grad: Tensor, weight: Tensor, pre: Tensor) -> tuple[Tensor, Tensor]:
    """Through the second product: grad [T, D], weight [D, F], pre [T, F] -> gradient of pre, gelu(pre)."""
    grad_pre = torch.empty(pre.shape, dtype=pre.dtype, device=pre.device)
    inner = torch.empty_like(grad_pre)
    grid, options = product_options("linear_gelu_backward", grad, weight)
    operands = grad.contiguous(), weight, None, pre.contiguous(), inner, grad_pre
    launch(_linear_gelu, grid, *operands, grad.shape[0], BACKWARD=True, **options)
    return grad_pre, inner
