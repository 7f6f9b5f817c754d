"""The blend of two bins' GELUs (tanh), on which the MLP's second product runs once, and its backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton.launch import accumulator, launch, next_power_of_2
from ..._triton.two_bin_rows import columns_if, contiguous, sample_of, small_row
from ...types import Bins
from ..activation.triton import gelu


@triton.jit(do_not_specialize=["rows"])
def _two_bin_gelu(
    pre_ptr, weight_ptr, cu_seqlens_large_ptr, cu_seqlens_small_ptr, out_ptr, rows, samples,
    F: tl.constexpr, BLOCK_F: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    sample = sample_of(cu_seqlens_large_ptr, t, samples, STEPS)
    in_small, other = small_row(cu_seqlens_large_ptr, cu_seqlens_small_ptr, sample, t, rows)
    weight = tl.load(weight_ptr + sample).to(tl.float32)
    for start in range(0, F, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        large, _ = gelu(tl.load(pre_ptr + t * F + f, mask=f < F, other=0.0).to(tl.float32))
        # Where only the large bin has the row: gelu(0) = 0.
        inside = columns_if(in_small, f < F)
        small, _ = gelu(tl.load(pre_ptr + other * F + f, mask=inside, other=0.0).to(tl.float32))
        blend = weight * large + (1 - weight) * small
        tl.store(out_ptr + t * F + f, blend.to(out_ptr.dtype.element_ty), mask=f < F)


@triton.jit(do_not_specialize=["rows"])
def _two_bin_gelu_bwd(
    grad_ptr, pre_ptr, weight_ptr, cu_seqlens_large_ptr, cu_seqlens_small_ptr, grad_pre_ptr, dots_ptr,
    rows, samples,
    F: tl.constexpr, BLOCK_F: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    sample = sample_of(cu_seqlens_large_ptr, t, samples, STEPS)
    in_small, other = small_row(cu_seqlens_large_ptr, cu_seqlens_small_ptr, sample, t, rows)
    weight = tl.load(weight_ptr + sample).to(tl.float32)
    dtype = grad_pre_ptr.dtype.element_ty
    dot = tl.zeros((BLOCK_F,), tl.float32)
    for start in range(0, F, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        grad = tl.load(grad_ptr + t * F + f, mask=f < F, other=0.0).to(tl.float32)
        pre = tl.load(pre_ptr + t * F + f, mask=f < F, other=0.0).to(tl.float32)
        large, slope = gelu(pre)
        tl.store(grad_pre_ptr + t * F + f, (weight * grad * slope).to(dtype), mask=f < F)
        inside = columns_if(in_small, f < F)
        small, slope = gelu(tl.load(pre_ptr + other * F + f, mask=inside, other=0.0).to(tl.float32))
        tl.store(grad_pre_ptr + other * F + f, ((1 - weight) * grad * slope).to(dtype), mask=inside)
        dot += grad * (large - small)
    tl.store(dots_ptr + t, tl.sum(dot, axis=0))


def _options(width: int, samples: int) -> dict:
    block = min(next_power_of_2(width), 1024)  # 16 bytes a thread at a time
    steps = max(samples - 1, 0).bit_length()
    return {"F": width, "BLOCK_F": block, "STEPS": steps, "num_warps": max(block // 256, 1)}


def two_bin_gelu(pre: Tensor, bins: Bins) -> Tensor:
    """pre [T + S, F] of both bins -> w gelu(large) (+ (1 - w) gelu(small) on small rows) [T, F]."""
    width, samples = pre.shape[1], bins.weight_large.shape[0]
    out = torch.empty(bins.rows, width, dtype=pre.dtype, device=pre.device)
    launch(
        _two_bin_gelu, (bins.rows,),
        pre.contiguous(), *contiguous(bins), out, bins.rows, samples, **_options(width, samples),
    )  # fmt: skip
    return out


def two_bin_gelu_backward(grad: Tensor, pre: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """grad [T, F] -> the gradient of pre [T + S, F], and what each row adds to that of w [T] fp32."""
    (rows, width), samples = grad.shape, bins.weight_large.shape[0]
    grad_pre = torch.empty(pre.shape, dtype=pre.dtype, device=pre.device)
    dots = accumulator(rows, like=pre)
    launch(
        _two_bin_gelu_bwd, (rows,),
        grad.contiguous(), pre.contiguous(), *contiguous(bins), grad_pre, dots, rows, samples,
        **_options(width, samples),
    )  # fmt: skip
    return grad_pre, dots
