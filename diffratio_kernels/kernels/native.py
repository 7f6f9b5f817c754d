"""Launchers of the C++ row kernels (csrc/cpu): allocate outputs, bring inputs into the layout they read.

Outputs come from `torch.empty`, so that the test bench can poison them. The processor's best instruction set
is taken; the environment variable DIFFRATIO_CPU_CAPABILITY=avx512|avx2|baseline asks for another one.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).parent.parent / "_C.abi3.so"
CAPABILITY = "DIFFRATIO_CPU_CAPABILITY"
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
"""What the row kernels are compiled for; on other processors than x86-64 for "baseline" alone."""


def _load() -> str | None:
    """Load the native library; the reason where there is none."""
    if not LIBRARY.exists():
        return f"{LIBRARY.name} was not built (no GCC 12 or CMake at install time?)"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} did not load: {error}"
    wanted = os.environ.get(CAPABILITY)
    if wanted is not None:
        try:
            use_instruction_set(wanted)
        except ValueError as error:
            raise ValueError(f"{CAPABILITY}: {error}") from None
    return None


def instruction_set() -> str:
    """The instruction set that the row kernels run on: one of INSTRUCTION_SETS."""
    return torch.ops.diffratio_native.instruction_set()


def instruction_sets() -> list[str]:
    """Those that this library holds and this processor can run, the best first."""
    return torch.ops.diffratio_native.instruction_sets()


def use_instruction_set(name: str) -> None:
    """Run the row kernels of one of INSTRUCTION_SETS from now on, in the whole process.

    Raises:
        ValueError: `name` is none of them, or cannot run here.
    """
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"{name!r} must be one of {', '.join(INSTRUCTION_SETS)}")
    if name not in instruction_sets():
        raise ValueError(f"no {name!r} row kernels can run here, only {', '.join(instruction_sets())}")
    torch.ops.diffratio_native.use_instruction_set(name)


unavailable = _load()
"""None where the kernels can run, else why they cannot."""


def _accumulation(t: Tensor, like: Tensor) -> Tensor:
    return t.to(torch.promote_types(like.dtype, torch.float32)).contiguous()


def router_logits(x: Tensor, router_weight: Tensor, router_bias: Tensor | None) -> Tensor:
    """x [B, N, D] -> logits [B, N] fp32 (fp64 for fp64)."""
    weight = _accumulation(router_weight, x)
    logits = torch.empty(x.shape[:2], dtype=weight.dtype)
    torch.ops.diffratio_native.router_logits(x.contiguous(), weight, logits)
    return logits if router_bias is None else logits.add_(router_bias)


def router_logits_backward(grad_logits: Tensor, x: Tensor, router_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x [B, N, D] in its dtype and of router_weight [D] in that of the logits: torch's own."""
    grad_x = (grad_logits[..., None] * router_weight.to(grad_logits.dtype)).to(x.dtype)
    return grad_x, grad_logits.flatten() @ x.to(grad_logits.dtype).flatten(0, 1)


def topk_select(logits: Tensor, offsets: Tensor, kept: int, keep_small: Tensor | None = None) -> Tensor:
    """logits [B, N], offsets [B+1] int32 on the kept counts -> index [T] int64, T = `kept` = offsets[-1].

    With keep_small [B] int32, each sample's small set comes first.
    """
    index = torch.empty(kept, dtype=torch.int64)
    small = None if keep_small is None else keep_small.contiguous()
    torch.ops.diffratio_native.topk_select(logits, offsets, small, index)
    return index


def topk_places(
    logits: Tensor, keep: list[int], offsets: Tensor, keep_small: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`topk_select` of keep[b] tokens a sample, the offsets, and `row_places` of the index."""
    index = topk_select(logits, offsets, sum(keep), keep_small)
    return index, offsets, row_places(index, logits.numel())


def row_places(index: Tensor, rows: int) -> Tensor:
    """place [rows] int32: which packed row each row of x became, -1 where none."""
    place = torch.empty(rows, dtype=torch.int32)
    bad = torch.ops.diffratio_native.row_places(index.contiguous(), place)
    if bad >= 0:
        raise ValueError(f"index[{bad}] must be in 0..{rows - 1} (rows of x) and occur only once")
    return place


def gather_adaln(x: Tensor, index: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Kept rows of x [B, N, D] and the same after adaLN: two tensors [T, D]."""
    rows = torch.empty(index.shape[0], x.shape[2], dtype=x.dtype)
    normed = torch.empty_like(rows)
    torch.ops.diffratio_native.gather_adaln(
        x.contiguous(),
        index.contiguous(),
        x.shape[1],
        _accumulation(shift, x),
        _accumulation(scale, x),
        eps,
        rows,
        normed,
    )
    return rows, normed


def adaln(rows: Tensor, index: Tensor, tokens: int, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """adaLN of packed rows [T, D]."""
    normed = torch.empty(rows.shape, dtype=rows.dtype)
    torch.ops.diffratio_native.gather_adaln(
        rows.contiguous(),
        index.contiguous(),
        tokens,
        _accumulation(shift, rows),
        _accumulation(scale, rows),
        eps,
        None,
        normed,
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
    scale = _accumulation(scale, rows)
    place = None if x_rows is None else row_places(index, x_rows)
    grad_x = torch.empty(count if x_rows is None else x_rows, width, dtype=rows.dtype)
    stats = torch.empty(count, 2, dtype=scale.dtype)
    grad_shift, grad_scale = torch.zeros_like(scale), torch.zeros_like(scale)
    torch.ops.diffratio_native.gather_adaln_backward(
        rows.contiguous(),
        index.contiguous(),
        place,
        tokens,
        scale,
        None if grad_rows is None else grad_rows.contiguous(),
        grad_normed.contiguous(),
        eps,
        grad_x,
        stats,
        grad_shift,
        grad_scale,
    )
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
) -> Tensor:
    """A new [B, N, D]: kept rows finished and rescaled, the others as in x.

    place: `row_places` of index, where it is there already.
    """
    out = torch.empty(x.shape, dtype=x.dtype)
    torch.ops.diffratio_native.scatter_rescale(
        x.contiguous(),
        row_places(index, x.shape[0] * x.shape[1]) if place is None else place,
        x.shape[1],
        hidden.contiguous(),
        branch.contiguous(),
        _accumulation(gate, x),
        _accumulation(logits, x),
        rescale,
        score_scale,
        out,
    )
    return out


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
    """Gradients of x, hidden, branch, gate [B, D] and logits [B, N] (the last two in the logits' dtype)."""
    gate, logits = _accumulation(gate, x), _accumulation(logits, x)
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    grad_hidden = torch.empty(hidden.shape, dtype=x.dtype)
    grad_branch = torch.empty(branch.shape, dtype=x.dtype)
    grad_gate, grad_logits = torch.zeros_like(gate), torch.empty(logits.shape, dtype=logits.dtype)
    torch.ops.diffratio_native.scatter_rescale_backward(
        grad_out.contiguous(),
        x.contiguous(),
        index.contiguous(),
        row_places(index, x.shape[0] * x.shape[1]),
        x.shape[1],
        hidden.contiguous(),
        branch.contiguous(),
        gate,
        logits,
        rescale,
        score_scale,
        grad_x,
        grad_hidden,
        grad_branch,
        grad_gate,
        grad_logits,
    )
    return grad_x, grad_hidden, grad_branch, grad_gate, grad_logits


def two_bin_gelu(
    pre: Tensor, weight_large: Tensor, large_offsets: Tensor, small_offsets: Tensor, rows: int
) -> Tensor:
    """pre [T + S, F] of both bins -> the blend of their GELUs [T, F], T = `rows`."""
    inner = torch.empty(rows, pre.shape[1], dtype=pre.dtype)
    torch.ops.diffratio_native.two_bin_gelu(
        pre.contiguous(),
        _accumulation(weight_large, pre),
        large_offsets.contiguous(),
        small_offsets.contiguous(),
        inner,
    )
    return inner


def two_bin_gelu_backward(
    grad: Tensor, pre: Tensor, weight_large: Tensor, large_offsets: Tensor, small_offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of pre [T + S, F]; that of weight_large row by row [T]."""
    weight_large = _accumulation(weight_large, pre)
    grad_pre = torch.empty(pre.shape, dtype=pre.dtype)
    weight_dots = torch.empty(grad.shape[0], dtype=weight_large.dtype)
    torch.ops.diffratio_native.two_bin_gelu_backward(
        grad.contiguous(),
        pre.contiguous(),
        weight_large,
        large_offsets.contiguous(),
        small_offsets.contiguous(),
        grad_pre,
        weight_dots,
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
    out = torch.empty(x.shape, dtype=x.dtype)
    torch.ops.diffratio_native.two_bin_blend(
        x.contiguous(),
        row_places(index, x.shape[0] * x.shape[1]),
        x.shape[1],
        hidden.contiguous(),
        branch.contiguous(),
        _accumulation(gate, x),
        _accumulation(logits, x),
        _accumulation(weight_large, x),
        large_offsets.contiguous(),
        small_offsets.contiguous(),
        rescale,
        score_scale,
        out,
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
    """Gradients of x, hidden [T + S, D], branch, gate and logits; that of weight_large row by row [T]."""
    gate, logits = _accumulation(gate, x), _accumulation(logits, x)
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    grad_hidden = torch.empty(hidden.shape, dtype=x.dtype)
    grad_branch = torch.empty(branch.shape, dtype=x.dtype)
    grad_gate, grad_logits = torch.zeros_like(gate), torch.empty(logits.shape, dtype=logits.dtype)
    weight_dots = torch.empty(index.shape[0], dtype=logits.dtype)
    torch.ops.diffratio_native.two_bin_blend_backward(
        grad_out.contiguous(),
        x.contiguous(),
        index.contiguous(),
        row_places(index, x.shape[0] * x.shape[1]),
        x.shape[1],
        hidden.contiguous(),
        branch.contiguous(),
        gate,
        logits,
        _accumulation(weight_large, x),
        large_offsets.contiguous(),
        small_offsets.contiguous(),
        rescale,
        score_scale,
        grad_x,
        grad_hidden,
        grad_branch,
        grad_gate,
        grad_logits,
        weight_dots,
    )
    return grad_x, grad_hidden, grad_branch, grad_gate, grad_logits, weight_dots
