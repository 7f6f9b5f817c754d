"""The configurations that ship: each launcher called, on meta tensors, as the models of today call it.

B samples of N tokens with K kept each, T = B K packed rows, M text tokens. T is no multiple of 16: the code
may assume nothing of it that other counts do not keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..kernels.triton import config, launcher
from .record import Specialization, record

B, N, K, M = 2, 1024, 717, 300
T = B * K
S = B * 615  # kept rows of the smaller of two bins
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# D and F of the MLP: PixArt and DiT-XL, DiT-S, Flux. SD3-medium's 1536 takes the blocks and tiles of 1152.
WIDTHS = {1152: 4608, 384: 1536, 3072: 12288}
# head_dim and heads: PixArt and DiT-XL, DiT-S and SD3-medium, Flux and Wan; others that the kernels take.
HEADS = {72: 16, 64: 24, 128: 24, 40: 8, 96: 12, 256: 8}
# These get fp16, inference and cross-attention too; the code of the others differs in its tiles only.
FULL_WIDTH, FULL_HEAD_DIM = 1152, 72

Calls = Iterator[tuple[str, Callable[[], object]]]
"""Labels and the calls to record."""


@dataclass(frozen=True)
class Job:
    """One kernel to compile for one architecture."""

    label: str
    dtype: str
    architecture: int
    spec: Specialization


def jobs(architectures: tuple[int, ...], kernel: str | None = None) -> list[Job]:
    """Everything that ships, or the kernels whose name holds `kernel`; what compiles the same comes once."""
    found: dict[tuple, Job] = {}
    for architecture in architectures:
        for label, dtype, call in configurations():
            for spec in record(call, architecture):
                if kernel is None or kernel in spec.name:
                    found.setdefault((architecture, repr(spec)), Job(label, dtype, architecture, spec))
    return list(found.values())


def configurations() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Label, dtype and call of every configuration; a call may launch several kernels."""
    for label, call in _routing():
        yield label, "", call
    for name, dtype in DTYPES.items():
        for width, hidden in WIDTHS.items():
            if name == "bf16" or width == FULL_WIDTH:
                calls = (
                    *_rows(width, dtype), *_scatter(width, dtype), *_mlp(width, hidden, dtype),
                    *_products(width, hidden, dtype), *_two_bins(width, hidden, dtype),
                )  # fmt: skip
                yield from ((f"D={width}{label}", name, call) for label, call in calls)
        calls = _tiles(FULL_WIDTH, WIDTHS[FULL_WIDTH], dtype)
        yield from ((f"D={FULL_WIDTH}{label}", name, call) for label, call in calls)
        for head_dim, heads in HEADS.items():
            if name == "bf16" or head_dim == FULL_HEAD_DIM:
                calls = _attention(head_dim, heads, dtype)
                yield from ((f"d={head_dim}{label}", name, call) for label, call in calls)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _index() -> Tensor:
    return _empty(T, dtype=torch.int64)


def _offsets() -> Tensor:
    return _empty(B + 1, dtype=torch.int32)


def _routing() -> Calls:
    yield "", partial(launcher("row_places"), _index(), B * N)
    logits = _empty(B, N, dtype=torch.float32)
    yield f"N={N} unequal counts", partial(launcher("topk_places"), logits, [K, K - 1], _offsets())
    for tokens in (1024, 4096, 32768):
        select = partial(launcher("topk_places"), _empty(B, tokens, dtype=torch.float32), [K] * B, None)
        yield f"N={tokens}", select
        yield f"N={tokens} two bins", partial(select, _empty(B, dtype=torch.int32))


def _rows(width: int, dtype: torch.dtype) -> Calls:
    x, rows, index = _empty(B, N, width, dtype=dtype), _empty(T, width, dtype=dtype), _index()
    weight, logits = _empty(width, dtype=dtype), _empty(B, N, dtype=torch.float32)
    shift, scale, gate = _empty(B, 6, width, dtype=dtype).unbind(1)[:3]
    yield "", partial(launcher("router_logits"), x, weight, None)
    yield "", partial(launcher("router_logits_backward"), logits, x, weight)
    gather = partial(launcher("gather_adaln"), x, index, shift, scale, 1e-6)
    yield " gather", gather
    yield " gather, normed only", partial(gather, keep_rows=False)
    yield "", partial(launcher("adaln"), rows, index, N, shift, scale, 1e-6)
    backward = partial(launcher("adaln_backward"), rows, index, N, scale, 1e-6)
    yield " gather", partial(backward, rows, rows, B * N)
    yield "", partial(backward, None, rows, None)
    yield "", partial(launcher("gate_residual"), rows, rows, gate, index, N)
    yield "", partial(launcher("gate_residual_backward"), rows, rows, gate, index, N)


def _tiles(width: int, hidden: int, dtype: torch.dtype) -> Calls:
    """Every tile of the table: calls with each of its numbers of rows, made odd."""
    for kernel, count in sorted({(entry.kernel, entry.rows | 1) for entry in config.PRODUCT_TILES}):
        rows, inner = _empty(count, width, dtype=dtype), _empty(count, hidden, dtype=dtype)
        square, up, down = (
            _empty(*shape, dtype=dtype) for shape in ((width, width), (hidden, width), (width, hidden))
        )
        short, long = _empty(width, dtype=dtype), _empty(hidden, dtype=dtype)
        x, logits = _empty(B, N, width, dtype=dtype), _empty(B, N, dtype=torch.float32)
        gate, index = _empty(B, 6, width, dtype=dtype)[:, 2], _empty(count, dtype=torch.int64)
        arguments = {
            "linear_gelu": (rows, up, long, False),
            "linear_gelu_backward": (rows, down, inner),
            "linear_gate_residual": (x, rows, square, short, gate, index, N),
            "linear_scatter": (x, index, rows, inner, down, short, gate, logits, "mlp", 1.0, None, True),
        }[kernel]
        backward = " backward" if kernel.endswith("backward") else ""
        yield f"{backward} T={count}", partial(launcher(kernel), *arguments)


def _products(width: int, hidden: int, dtype: torch.dtype) -> Calls:
    x, rows, index = _empty(B, N, width, dtype=dtype), _empty(T, width, dtype=dtype), _index()
    gate, bias = _empty(B, 6, width, dtype=dtype)[:, 2], _empty(width, dtype=dtype)
    out, weights = launcher("linear_gate_residual"), (_empty(width, width, dtype=dtype), bias)
    yield "", partial(out, x, rows, *weights, gate, index, N)
    inner, weight = _empty(T, hidden, dtype=dtype), _empty(width, hidden, dtype=dtype)
    put = partial(launcher("linear_scatter"), x, index, rows, inner, weight, bias, gate)
    every_mode = width == FULL_WIDTH and dtype == torch.bfloat16
    if every_mode:
        yield " no gate", partial(out, rows, rows, *weights, None, None, N)
    for mode in ("mlp", "residual", "output", "none") if every_mode else ("mlp",):
        yield f" {mode}", partial(put, _empty(B, N, dtype=torch.float32), mode, 1.0)


def _scatter(width: int, dtype: torch.dtype) -> Calls:
    x, rows = _empty(B, N, width, dtype=dtype), _empty(T, width, dtype=dtype)
    gate, logits = _empty(B, 6, width, dtype=dtype)[:, 5], _empty(B, N, dtype=torch.float32)
    arguments = x, _index(), rows, rows, gate, logits
    every_mode = width == FULL_WIDTH and dtype == torch.bfloat16
    for mode in ("mlp", "residual", "output", "none") if every_mode else ("mlp",):
        yield f" {mode}", partial(launcher("scatter_rescale"), *arguments, mode, 1.0)
        yield f" {mode} in place", partial(launcher("scatter_rescale"), *arguments, mode, 1.0, in_place=True)
        yield f" {mode}", partial(launcher("scatter_rescale_backward"), x, *arguments, mode, 1.0)
        router = _empty(width, dtype=torch.float32), None
        yield f" {mode} next", partial(launcher("scatter_rescale_next"), *arguments, mode, 1.0, *router)


def _mlp(width: int, hidden: int, dtype: torch.dtype) -> Calls:
    rows, bias = _empty(T, width, dtype=dtype), _empty(hidden, dtype=dtype)
    forward = partial(launcher("linear_gelu"), rows, _empty(hidden, width, dtype=dtype), bias)
    yield " training", partial(forward, True)
    if width == FULL_WIDTH:
        yield " inference", partial(forward, False)
    weight, pre = _empty(width, hidden, dtype=dtype), _empty(T, hidden, dtype=dtype)
    yield " backward", partial(launcher("linear_gelu_backward"), rows, weight, pre)


def _two_bins(width: int, hidden: int, dtype: torch.dtype) -> Calls:
    weights = _empty(B, dtype=torch.float32), _offsets(), _offsets()
    pre, inner = _empty(T + S, hidden, dtype=dtype), _empty(T, hidden, dtype=dtype)
    yield "", partial(launcher("two_bin_gelu"), pre, *weights, T)
    yield "", partial(launcher("two_bin_gelu_backward"), inner, pre, *weights)
    x, both, branch = (_empty(*rows, width, dtype=dtype) for rows in ((B, N), (T + S,), (T,)))
    gate, logits = _empty(B, 6, width, dtype=dtype)[:, 5], _empty(B, N, dtype=torch.float32)
    arguments = x, _index(), both, branch, gate, logits, *weights
    every_mode = width == FULL_WIDTH and dtype == torch.bfloat16
    for mode in ("mlp", "residual", "output", "none") if every_mode else ("mlp",):
        yield f" {mode}", partial(launcher("two_bin_blend"), *arguments, mode, 1.0)
        yield f" {mode}", partial(launcher("two_bin_blend_backward"), x, *arguments, mode, 1.0)


def _attention(head_dim: int, heads: int, dtype: torch.dtype) -> Calls:
    query, key, value = _empty(T, 3, heads, head_dim, dtype=dtype).unbind(1)
    text_key, text_value = _empty(B * M, 2, heads, head_dim, dtype=dtype).unbind(1)
    out, lse = _empty(T, heads, head_dim, dtype=dtype), _empty(heads, T, dtype=torch.float32)
    lengths = _empty(B, dtype=torch.int32)
    to_self = query, key, value, _offsets(), _offsets(), K, K, None, None
    to_text = out, text_key, text_value, _offsets(), _offsets(), K, M, lengths, None
    forward, backward = launcher("attention"), partial(launcher("attention_backward"), out)
    yield " self", partial(forward, *to_self, True)
    yield " self", partial(backward, *to_self[:3], out, lse, *to_self[3:])
    if head_dim <= config.LARGEST_HEAD_DIM_OF_TWO_BINS:
        yield from _two_bin_attention(query, key, value)
    if head_dim == FULL_HEAD_DIM:
        yield " self inference", partial(forward, *to_self, False)
        yield " cross", partial(forward, *to_text, True)
        yield " cross", partial(backward, *to_text[:3], out, lse, *to_text[3:])


def _two_bin_attention(query: Tensor, key: Tensor, value: Tensor) -> Calls:
    _, heads, head_dim = query.shape
    out, lse = _empty(T + S, heads, head_dim, dtype=query.dtype), _empty(heads, T + S, dtype=torch.float32)
    bins = _offsets(), _offsets(), K, S // B, S, None
    yield " self", partial(launcher("two_bin_attention"), query, key, value, *bins, True)
    backward = launcher("two_bin_attention_backward")
    yield " self", partial(backward, out, query, key, value, out, lse, *bins)
