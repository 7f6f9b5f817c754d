"""The MLP's first product with its activation as the epilogue, and the second product's backward with the
activation's.

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
from ..activation.triton import activate


@triton.jit(do_not_specialize=["rows"])
def _linear_gelu(
    x_ptr, weight_ptr, bias_ptr, pre_ptr, out_ptr, grad_pre_ptr, rows,
    K: tl.constexpr, F: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_F: tl.constexpr, BACKWARD: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """x [T, K] times weight [K, F] of any strides. Forward: pre = product + bias, out = act(pre); BACKWARD:
    grad_pre = product * act'(pre), out = act(pre)."""
    row, column = grouped_tile(rows, F, BLOCK_M, BLOCK_N, GROUP)
    total = product(x_ptr, weight_ptr, row, column, rows, K, F, STRIDE_K, STRIDE_F, BLOCK_N, BLOCK_K)
    f = column + tl.arange(0, BLOCK_N)[None, :]
    inside = (row < rows) & (f < F)
    at = row * F + f
    dtype = out_ptr.dtype.element_ty
    if BACKWARD:
        activation, slope = activate(tl.load(pre_ptr + at, mask=inside, other=0.0).to(tl.float32), KIND)
        tl.store(grad_pre_ptr + at, (total * slope).to(dtype), mask=inside)
    else:
        if bias_ptr is not None:
            total += tl.load(bias_ptr + f, mask=f < F, other=0.0).to(tl.float32)
        if pre_ptr is not None:
            tl.store(pre_ptr + at, total.to(dtype), mask=inside)
        activation, slope = activate(total, KIND)
    tl.store(out_ptr + at, activation.to(dtype), mask=inside)


def linear_gelu(
    rows: Tensor,
    fc1: Linear,
    out: Tensor | None = None,
    pre: Tensor | None = None,
    kind: str = "gelu_tanh",
) -> Tensor:
    """rows [T, D], fc1 [F, D] -> act(fc1(rows)) [T, F], into `out` where it is given.

    What act is given, which the backward pass needs, is written into `pre` where it is given.
    """
    if out is None:
        out = torch.empty(rows.shape[0], fc1.weight.shape[0], dtype=rows.dtype, device=rows.device)
    bias = None if fc1.bias is None else fc1.bias.contiguous()
    grid, options = product_options("linear_gelu", rows, fc1.weight.t())
    operands = rows.contiguous(), fc1.weight.t(), bias, pre, out, None
    launch(_linear_gelu, grid, *operands, rows.shape[0], BACKWARD=False, KIND=kind, **options)
    return out


def linear_gelu_backward(
    grad: Tensor, weight: Tensor, pre: Tensor, kind: str = "gelu_tanh"
) -> tuple[Tensor, Tensor]:
    """Through the second product: grad [T, D], weight [D, F], pre [T, F] -> gradient of pre, act(pre)."""
    grad_pre = torch.empty(pre.shape, dtype=pre.dtype, device=pre.device)
    inner = torch.empty_like(grad_pre)
    grid, options = product_options("linear_gelu_backward", grad, weight)
    operands = grad.contiguous(), weight, None, pre.contiguous(), inner, grad_pre
    launch(_linear_gelu, grid, *operands, grad.shape[0], BACKWARD=True, KIND=kind, **options)
    return grad_pre, inner
