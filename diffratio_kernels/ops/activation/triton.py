"""What stands between the products of an MLP, and its backward: one program per packed row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import launch, next_power_of_2, unit_rows
from ...types import Gated


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
def exact_gelu(x):
    """The GELU x Phi(x) without tanh, and its slope."""
    gate = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return x * gate, gate + x * density


@triton.jit
def silu(x):
    """x sigmoid(x), and its slope."""
    gate = tl.sigmoid(x)
    return x * gate, gate + x * gate * (1 - gate)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """One of the `ACTIVATIONS` of x, and its slope."""
    if KIND == "gelu_tanh":
        value, slope = gelu(x)
    elif KIND == "gelu":
        value, slope = exact_gelu(x)
    else:
        value, slope = silu(x)
    return value, slope


@triton.jit
def _activation(
    gate_ptr, value_ptr, index_ptr, logits_ptr, out_ptr, stride_gate, stride_value, stride_out, score_scale,
    KIND: tl.constexpr, F: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    score = 1.0
    if logits_ptr is not None:
        score = score_scale * tl.sigmoid(tl.load(logits_ptr + tl.load(index_ptr + t)).to(tl.float32))
    for start in range(0, F, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        gate = tl.load(gate_ptr + t * stride_gate + f, mask=f < F, other=0.0).to(tl.float32)
        inner, _ = activate(gate, KIND)
        if value_ptr is not None:
            inner *= tl.load(value_ptr + t * stride_value + f, mask=f < F, other=0.0).to(tl.float32)
        tl.store(out_ptr + t * stride_out + f, (score * inner).to(out_ptr.dtype.element_ty), mask=f < F)


@triton.jit
def _activation_bwd(
    grad_ptr, gate_ptr, value_ptr, index_ptr, logits_ptr, grad_gate_ptr, grad_value_ptr, grad_logits_ptr,
    stride_gate, stride_value, score_scale, KIND: tl.constexpr, F: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    dtype = grad_gate_ptr.dtype.element_ty
    score = 1.0
    if logits_ptr is not None:
        row = tl.load(index_ptr + t)
        sigmoid = tl.sigmoid(tl.load(logits_ptr + row).to(tl.float32))
        score = score_scale * sigmoid
    dot = tl.zeros((BLOCK_F,), tl.float32)
    for start in range(0, F, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        grad = tl.load(grad_ptr + t * F + f, mask=f < F, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + t * stride_gate + f, mask=f < F, other=0.0).to(tl.float32)
        inner, slope = activate(gate, KIND)
        if value_ptr is not None:
            value = tl.load(value_ptr + t * stride_value + f, mask=f < F, other=0.0).to(tl.float32)
            tl.store(grad_value_ptr + t * F + f, (score * grad * inner).to(dtype), mask=f < F)
            grad *= value
        tl.store(grad_gate_ptr + t * F + f, (score * grad * slope).to(dtype), mask=f < F)
        dot += grad * inner
    if logits_ptr is not None:
        tl.store(grad_logits_ptr + row, tl.sum(dot, axis=0) * score * (1 - sigmoid))


def _operands(given: Gated) -> tuple:
    gate, value = (None if t is None else unit_rows(t) for t in (given.gate, given.value))
    index, logits = (None if t is None else t.contiguous() for t in (given.index, given.logits))
    return gate, value, index, logits


def _options(given: Gated) -> dict:
    width = given.gate.shape[1]
    block = min(next_power_of_2(width), 1024)  # 16 bytes a thread at a time
    return {"KIND": given.kind, "F": width, "BLOCK_F": block, "num_warps": max(block // 256, 1)}


def activation(given: Gated, out: Tensor | None = None) -> Tensor:
    """act(gate) [T, F], times value, times the score of the row. `out`, which has its columns
    side by side, may be gate or value."""
    gate, value, *scores = _operands(given)
    if out is None:
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    strides = gate.stride(0), 0 if value is None else value.stride(0), out.stride(0)
    operands = gate, value, *scores, out, *strides, given.score_scale
    launch(_activation, (gate.shape[0],), *operands, **_options(given))
    return out


def activation_backward(grad: Tensor, given: Gated) -> tuple[Tensor | None, ...]:
    """grad [T, F] -> the gradients of gate and value, and that of logits [B, N] in fp32."""
    gate, value, index, logits = _operands(given)
    grad_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    grad_value = None if value is None else torch.empty_like(grad_gate)
    grad_logits = None if logits is None else torch.zeros_like(logits, dtype=torch.float32)
    strides = gate.stride(0), 0 if value is None else value.stride(0)
    operands = grad.contiguous(), gate, value, index, logits, grad_gate, grad_value, grad_logits
    launch(_activation_bwd, (gate.shape[0],), *operands, *strides, given.score_scale, **_options(given))
    return grad_gate, grad_value, grad_logits
