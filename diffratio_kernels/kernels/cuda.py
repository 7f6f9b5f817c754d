"""Launchers of the CUDA C++ kernels (csrc/cuda): allocate outputs, bring inputs into the layout they read.

Outputs come from `torch.empty`, so that the test bench can poison them. Nothing waits for the device, and no
value is looked at: an index out of range is undefined here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native

SLICE_TOKENS = 256  # kSliceTokens in column_sums.cuh

_ops = torch.ops.diffratio_cuda


def _why_unavailable() -> str | None:
    if native.unavailable is not None:
        return native.unavailable
    if not hasattr(_ops, "router_logits"):
        return f"{native.LIBRARY.name} was built without CUDA kernels (no nvcc at install time, or it failed)"
    return None


unavailable = _why_unavailable()
"""None where the kernels were built, else why they were not. Whether there is a GPU is another question."""


def _stream(t: Tensor) -> int:
    return torch.cuda.current_stream(t.device).cuda_stream if t.is_cuda else 0


def _modulation(t: Tensor) -> Tensor:
    """[B, D] in fp32, each row contiguous: a vector of `modulation.unbind(1)` in fp32 is read where it is."""
    t = t.float()
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()


def _float(t: Tensor) -> Tensor:
    return t.float().contiguous()


def _column_sums(like: Tensor, sums: int, samples: int, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """partial [slices, sums, B, D] and sums [sums, B, D]; with one slice they are the same memory."""
    slices = -(-tokens // SLICE_TOKENS)
    out = torch.empty(sums, samples, width, dtype=torch.float32, device=like.device)
    return out if slices == 1 else out.new_empty(slices, *out.shape), out


def router_logits(x: Tensor, router_weight: Tensor, router_bias: Tensor | None) -> Tensor:
    """x [B, N, D] -> logits [B, N] fp32."""
    logits = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    bias = None if router_bias is None else router_bias.float()
    _ops.router_logits(x.contiguous(), _float(router_weight), bias, logits, _stream(x))
    return logits


def router_logits_backward(grad_logits: Tensor, x: Tensor, router_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x [B, N, D] in its dtype and of router_weight [D] in fp32."""
    batch, tokens, width = x.shape
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial, grad_weight = _column_sums(x, 1, 1, batch * tokens, width)
    _ops.router_logits_backward(
        _float(grad_logits), x.contiguous(), _float(router_weight), grad_x, partial, grad_weight, _stream(x)
    )
    return grad_x, grad_weight.flatten()


def topk_select(logits: Tensor, offsets: Tensor, kept: int, keep_small: Tensor | None = None) -> Tensor:
    """logits [B, N] fp32, offsets [B+1] int32 on the kept counts -> index [T] int64, T = `kept` = offsets[B].

    keep_small [B] int32: the `keep_small[b]` best of each sample come first, ascending, then its others,
    ascending.
    """
    index = torch.empty(kept, dtype=torch.int64, device=logits.device)
    _ops.topk_select(logits.contiguous(), -1, offsets, keep_small, index, None, _stream(logits))
    return index


def topk_places(
    logits: Tensor, keep: list[int], offsets: Tensor | None, keep_small: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`topk_select` of keep[b] tokens a sample, their offsets, and `row_places` of the index, in one launch.

    offsets: None where all samples keep as many, then the kernel writes them.
    """
    batch, device = len(keep), logits.device
    index = torch.empty(sum(keep), dtype=torch.int64, device=device)
    place = torch.empty(logits.numel(), dtype=torch.int32, device=device)
    equal = keep[0] if offsets is None else -1
    if offsets is None:
        offsets = torch.empty(batch + 1, dtype=torch.int32, device=device)
    _ops.topk_select(logits.contiguous(), equal, offsets, keep_small, index, place, _stream(logits))
    return index, offsets, place


def row_places(index: Tensor, rows: int) -> Tensor:
    """place [rows] int32: which packed row each row of x became, -1 where none."""
    place = torch.full((rows,), -1, dtype=torch.int32, device=index.device)
    _ops.row_places(index.contiguous(), place, _stream(index))
    return place


def gather_adaln(
    x: Tensor, index: Tensor, shift: Tensor, scale: Tensor, eps: float, keep_rows: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Kept rows of x [B, N, D], or None where they are not wanted, and the same after adaLN, each [T, D]."""
    normed = torch.empty(index.shape[0], x.shape[2], dtype=x.dtype, device=x.device)
    rows = torch.empty_like(normed) if keep_rows else None
    _ops.gather_adaln(
        x.contiguous(),
        index.contiguous(),
        x.shape[1],
        True,
        _modulation(shift),
        _modulation(scale),
        eps,
        rows,
        normed,
        _stream(x),
    )
    return rows, normed


def adaln(rows: Tensor, index: Tensor, tokens: int, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """adaLN of packed rows [T, D]."""
    normed = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    _ops.gather_adaln(
        rows.contiguous(),
        index.contiguous(),
        tokens,
        False,
        _modulation(shift),
        _modulation(scale),
        eps,
        None,
        normed,
        _stream(rows),
    )
    return normed


def adaln_backward(
    rows: Tensor,
    index: Tensor,
    tokens: int,
    scale: Tensor,
    eps: float,
    grad_rows: Tensor | None,
    grad_normed: Tensor,
    x_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (with `x_rows`, rows of the flattened x that was gathered) or rows, of shift and scale.

    grad_rows: gradient of the gathered rows themselves, if any.
    """
    count, width = rows.shape
    samples = scale.shape[0]
    grad_x = torch.empty(count if x_rows is None else x_rows, width, dtype=rows.dtype, device=rows.device)
    stats = torch.empty(count, 2, dtype=torch.float32, device=rows.device)
    partial, grad_modulation = _column_sums(rows, 2, samples, tokens, width)
    _ops.gather_adaln_backward(
        rows.contiguous(),
        index.contiguous(),
        row_places(index, samples * tokens),
        tokens,
        x_rows is not None,
        _modulation(scale),
        None if grad_rows is None else grad_rows.contiguous(),
        grad_normed.contiguous(),
        eps,
        grad_x,
        stats,
        partial,
        grad_modulation,
        _stream(rows),
    )
    grad_shift, grad_scale = grad_modulation.unbind(0)
    return grad_x, grad_shift, grad_scale


def scatter_rescale(
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: str,
    score_scale: float,
    place: Tensor | None = None,
    in_place: bool = False,
) -> Tensor:
    """A [B, N, D] with the kept rows finished and rescaled, the others as in x.

    in_place: it is x itself, which must be contiguous; only the kept rows are touched. place: `row_places` of
    index, where it is there already.
    """
    if in_place and not x.is_contiguous():
        raise ValueError("x must be contiguous to be written in place")
    x = x.contiguous()
    out = x if in_place else torch.empty_like(x)
    if in_place:
        place = None
    elif place is None:
        place = row_places(index, x.shape[0] * x.shape[1])
    rows = index.contiguous() if in_place else None
    _put_back(x, place, rows, hidden, branch, gate, logits, rescale, score_scale, out, None, None, None)
    return out


def _put_back(x, place, index, hidden, branch, gate, logits, rescale, score_scale, out, *next_logits):
    _ops.scatter_rescale(
        x, place, index, x.shape[1], hidden.contiguous(), branch.contiguous(), _modulation(gate),
        _float(logits), rescale, score_scale, out, *next_logits, _stream(x),
    )  # fmt: skip


def scatter_rescale_next(
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: str,
    score_scale: float,
    next_weight: Tensor,
    next_bias: Tensor | None,
    place: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`scatter_rescale`, and the `router_logits` [B, N] of what it returns with another layer's router.

    They have the same bits where a warp holds a row: D up to 1280 in half, 640 in fp32.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    next_logits = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    place = row_places(index, next_logits.numel()) if place is None else place
    router = _float(next_weight), None if next_bias is None else next_bias.float()
    finish = hidden, branch, gate, logits, rescale, score_scale
    _put_back(x, place, None, *finish, out, *router, next_logits)
    return out, next_logits


def scatter_rescale_backward(
    grad_out: Tensor,
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    rescale: str,
    score_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, hidden, branch, gate [B, D] and logits [B, N] (the last two fp32)."""
    batch, tokens, width = x.shape
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_hidden = torch.empty(hidden.shape, dtype=x.dtype, device=x.device)
    grad_branch = torch.empty(branch.shape, dtype=x.dtype, device=x.device)
    grad_logits = torch.empty(logits.shape, dtype=torch.float32, device=x.device)
    partial, grad_gate = _column_sums(x, 1, batch, tokens, width)
    _ops.scatter_rescale_backward(
        grad_out.contiguous(),
        x.contiguous(),
        row_places(index, batch * tokens),
        tokens,
        hidden.contiguous(),
        branch.contiguous(),
        _modulation(gate),
        _float(logits),
        rescale,
        score_scale,
        grad_x,
        grad_hidden,
        grad_branch,
        partial,
        grad_gate,
        grad_logits,
        _stream(x),
    )
    return grad_x, grad_hidden, grad_branch, grad_gate[0], grad_logits


def two_bin_gelu(
    pre: Tensor, weight_large: Tensor, large_offsets: Tensor, small_offsets: Tensor, rows: int
) -> Tensor:
    """pre [T + S, F] of both bins -> inner [T, F], the blend of their GELUs. rows is T."""
    inner = torch.empty(rows, pre.shape[1], dtype=pre.dtype, device=pre.device)
    offsets = large_offsets.contiguous(), small_offsets.contiguous()
    _ops.two_bin_gelu(pre.contiguous(), _float(weight_large), *offsets, inner, _stream(pre))
    return inner


def two_bin_gelu_backward(
    grad: Tensor, pre: Tensor, weight_large: Tensor, large_offsets: Tensor, small_offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """grad [T, F] -> gradient of pre [T + S, F]; that of weight_large row by row [T], fp32."""
    grad_pre = torch.empty(pre.shape, dtype=pre.dtype, device=pre.device)
    weight_dots = torch.empty(grad.shape[0], dtype=torch.float32, device=pre.device)
    _ops.two_bin_gelu_backward(
        grad.contiguous(),
        pre.contiguous(),
        _float(weight_large),
        large_offsets.contiguous(),
        small_offsets.contiguous(),
        grad_pre,
        weight_dots,
        _stream(pre),
    )
    return grad_pre, weight_dots


def two_bin_blend(
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    weight_large: Tensor,
    large_offsets: Tensor,
    small_offsets: Tensor,
    rescale: str,
    score_scale: float,
) -> Tensor:
    """A new [B, N, D]: kept rows blended from both bins, finished and rescaled, the others as in x."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _ops.two_bin_blend(
        x.contiguous(),
        row_places(index, x.shape[0] * x.shape[1]),
        x.shape[1],
        hidden.contiguous(),
        branch.contiguous(),
        _modulation(gate),
        _float(logits),
        _float(weight_large),
        large_offsets.contiguous(),
        small_offsets.contiguous(),
        rescale,
        score_scale,
        out,
        _stream(x),
    )
    return out


def two_bin_blend_backward(
    grad_out: Tensor,
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    weight_large: Tensor,
    large_offsets: Tensor,
    small_offsets: Tensor,
    rescale: str,
    score_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, hidden [T + S, D], branch, gate [B, D] and logits [B, N]; that of weight_large row by
    row [T]. The last three are fp32."""
    batch, tokens, width = x.shape
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_hidden = torch.empty(hidden.shape, dtype=x.dtype, device=x.device)
    grad_branch = torch.empty(branch.shape, dtype=x.dtype, device=x.device)
    grad_logits = torch.empty(logits.shape, dtype=torch.float32, device=x.device)
    weight_dots = torch.empty(branch.shape[0], dtype=torch.float32, device=x.device)
    partial, grad_gate = _column_sums(x, 1, batch, tokens, width)
    _ops.two_bin_blend_backward(
        grad_out.contiguous(),
        x.contiguous(),
        row_places(index, batch * tokens),
        tokens,
        hidden.contiguous(),
        branch.contiguous(),
        _modulation(gate),
        _float(logits),
        _float(weight_large),
        large_offsets.contiguous(),
        small_offsets.contiguous(),
        rescale,
        score_scale,
        grad_x,
        grad_hidden,
        grad_branch,
        partial,
        grad_gate,
        grad_logits,
        weight_dots,
        _stream(x),
    )
    return grad_x, grad_hidden, grad_branch, grad_gate[0], grad_logits, weight_dots
