"""Latency of every operator by every implementation, as bytes and FLOPs per second, with a cold L2 cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffratio_kernels import kept_tokens, ops, reference
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.calls import Call, operator_calls, two_bins_of
from diffratio_kernels.testing.inputs import ModBlockCase, cast

from .timing import rotating_times, rotations

BLOCK = ModBlockCase(seed=0, heads=16, head_dim=72, hidden=4608, text=120)
"""PixArt's block; batch, tokens and kept counts are filled in."""
_NOT_ALONE = ("mod_block", "attention", "two_bin_block", "two_bin_attention")
"""Whole blocks, and attention, which libraries know too and whose check takes one head."""
ATTENTIONS = ("triton", "sdpa", "cudnn", "varlen", "flash_attn")


def work_of(op: str, case: ModBlockCase) -> tuple[int, int]:
    """Bytes that an operator must move (each input read once, each output written once) and its FLOPs."""
    rows, width = case.batch * case.tokens, case.heads * case.head_dim
    kept, pairs = sum(case.full_keep), sum(k * k for k in case.full_keep)
    row, weights = width * case.dtype.itemsize, 2 * width * case.hidden
    small = sum(two_bins_of(case).full_keep_small)
    return {
        "route": (rows * (row + 4) + 8 * kept, 2 * rows * width),
        "gather_adaln": (3 * kept * row, 8 * kept * width),
        "adaln": (2 * kept * row, 8 * kept * width),
        "gate_residual": (3 * kept * row, 2 * kept * width),
        "attention": (4 * kept * row, 4 * pairs * width),
        "mlp": (2 * kept * row + weights * case.dtype.itemsize, 2 * kept * weights),
        "scatter_rescale": ((2 * rows + kept) * row, 3 * kept * width),
        "scatter_rescale_": (3 * kept * row, 3 * kept * width),
        "two_bin_gelu": (
            (2 * kept + small) * case.hidden * case.dtype.itemsize,
            8 * (kept + small) * case.hidden,
        ),
        "two_bin_blend": ((2 * (rows + kept) + small) * row, (8 * kept + small) * width),
    }[op]


@torch.no_grad()
def operator_latency(
    batch: int,
    tokens: int,
    implementations: Sequence[str],
    attentions: Sequence[str] = ATTENTIONS,
    tenths: int = 5,
    case: ModBlockCase = BLOCK,
    rounds: int = 30,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    progress: bool = True,
) -> list[dict]:
    """One row per operator and implementation that can run, forward only, in CUDA graphs; tenths: kept / 10.

    A row holds name, implementation, batch, tokens, kept, bytes, flops, seconds, bytes_per_second and
    flops_per_second; `refused`, with the reason, instead of a time where a library's attention does not take
    the case. On the CPU there are no seconds: `of_first`, relative to an operator's first implementation.
    AssertionError where one is outside the error budget: then nothing is timed.
    """
    keep = kept_tokens(tenths, tokens)
    case = replace(case, batch=batch, tokens=tokens, keep=(keep,), dtype=dtype)
    chosen = {
        (op, name): call
        for name in implementations
        for op, call in operator_calls(name, dtype, device, case=case).items()
        if op not in _NOT_ALONE
    }
    for (op, name), call in chosen.items():
        _check(f"latency: {op} {name}", op, call)
    attention = operator_calls("auto", dtype, device, case=case)["attention"]
    refused = {}
    for name in attentions:
        call = replace(attention, arguments=attention.arguments | {"implementation": name})
        reason = _why_refused(call, keep)
        if reason is None:
            chosen["attention", name] = call
        else:
            refused["attention", name] = reason
    seconds = rotating_times(
        {
            key: [_copy(call).forward for _ in range(rotations(work_of(key[0], case)[0], device, most=64))]
            for key, call in chosen.items()
        },
        rounds,
        device,
        graphs=True,
        progress=progress,
    )
    shape = {"batch": batch, "tokens": tokens, "kept": tenths / 10}
    rows = [_row(op, name, case, seconds, device) | shape for op, name in seconds]
    return rows + [
        {"name": op, "implementation": name, **shape, "refused": reason}
        for (op, name), reason in refused.items()
    ]


def _row(op: str, name: str, case: ModBlockCase, seconds: dict, device: str) -> dict:
    moved, flops = work_of(op, case)
    row = {"name": op, "implementation": name, "bytes": moved, "flops": flops}
    value = seconds[op, name].median
    if device == "cpu":
        return row | {"of_first": value / next(v.median for (other, _), v in seconds.items() if other == op)}
    return row | {"seconds": value, "bytes_per_second": moved / value, "flops_per_second": flops / value}


def _copy(call: Call) -> Call:
    """The same call on buffers of its own; in place without the copy that keeps x as it was."""
    arguments = {n: t.clone() if isinstance(t, Tensor) else t for n, t in call.arguments.items()}
    in_place = not call.differentiable
    return Call(ops.scatter_rescale_ if in_place else call.function, arguments, call.differentiable)


def _check(label: str, op: str, call: Call) -> None:
    """Assert that every floating result is within the budget of eager PyTorch, the last implementation."""
    eager = call.arguments | {"implementation": ops.IMPLEMENTATIONS[op.removesuffix("_")][-1]}
    peer, gold = (replace(call, arguments=a).forward() for a in (eager, cast(eager, torch.float64)))
    for result, *others in zip(call.forward(), peer, gold, strict=True):
        if result.is_floating_point():
            check_budget(label, result, *others)


def _why_refused(call: Call, keep: int) -> str | None:
    """Why an attention does not run; AssertionError where it runs and the first sample is over the budget."""
    try:
        [out] = call.forward()
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[0]
    a = call.arguments
    offsets = reference.packed_offsets([keep], out.device)
    q, k, v = (a[name][:keep, :1] for name in ("query", "key", "value"))
    peer = reference.attention(q, k, v, offsets, offsets, keep, keep)
    gold = reference.attention(*(t.double() for t in (q, k, v)), offsets, offsets, keep, keep)
    check_budget(f"latency: attention {a['implementation']}", out[:keep, :1], peer, gold)
    return None
