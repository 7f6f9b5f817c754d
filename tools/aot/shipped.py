"""The configurations that ship: each Triton function called, on meta tensors, as the models of today call it.

B samples of N tokens with K kept each, T = B K packed rows, M text tokens. T is no multiple of 16: the code
may assume nothing of it that other counts do not keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffratio_kernels._triton import tiles
from diffratio_kernels._triton.launch import row_map_of
from diffratio_kernels.ops.activation import triton as activation
from diffratio_kernels.ops.adaln import triton as adaln
from diffratio_kernels.ops.attention import triton as attention
from diffratio_kernels.ops.fused_linear import gate_residual as fused_gate_residual
from diffratio_kernels.ops.fused_linear import scatter as fused_scatter
from diffratio_kernels.ops.gate_residual import triton as gate_residual
from diffratio_kernels.ops.mlp import triton as mlp
from diffratio_kernels.ops.qk_norm_rope import triton as qk_norm_rope
from diffratio_kernels.ops.route import triton as route
from diffratio_kernels.ops.scatter_rescale import triton as scatter_rescale
from diffratio_kernels.ops.two_bin_attention import triton as two_bin_attention
from diffratio_kernels.ops.two_bin_blend import triton as two_bin_blend
from diffratio_kernels.ops.two_bin_gelu import triton as two_bin_gelu
from diffratio_kernels.types import (
    Bins,
    Finish,
    Gated,
    HeadNorm,
    Heads,
    Linear,
    Nested,
    PackedRows,
    Rescale,
    Rope,
    RowNorm,
    Seqlens,
)

from .record import Specialization, record

B, N, K, M = 2, 1024, 717, 300
T = B * K
S = B * 615  # kept rows of the smaller of two bins
LONG, SHORT = 4096, 410  # rows of a longest sample: attention takes whole tiles of queries, and half of them
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# D and F of the MLP: PixArt and DiT-XL, DiT-S, Flux, LTX, Z-Image. SD3-medium's 1536 is as 1152.
WIDTHS = {1152: 4608, 384: 1536, 3072: 12288, 2048: 8192, 3840: 10240}
# head_dim and heads: PixArt and DiT-XL, DiT-S and SD3-medium, Flux and Wan; others that the kernels take.
HEADS = {72: 16, 64: 24, 128: 24, 40: 8, 96: 12, 256: 8}
# Heads of query that share one of key and value, as in Krea 2.
SHARED = {128: 3}
# These get fp16, inference and cross-attention too; the code of the others differs in its tiles only.
FULL_WIDTH, FULL_HEAD_DIM = 1152, 72

Calls = Iterator[tuple[str, Callable, tuple]]
"""Labels, and what to record: a function and its arguments."""


@dataclass(frozen=True)
class Configuration:
    """One call that ships; it may launch several kernels."""

    label: str
    dtype: str
    function: Callable
    arguments: tuple


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
        for shipped in configurations():
            for spec in record(architecture, shipped.function, *shipped.arguments):
                if kernel is None or kernel in spec.name:
                    job = Job(shipped.label, shipped.dtype, architecture, spec)
                    found.setdefault((architecture, repr(spec)), job)
    return list(found.values())


def configurations() -> Iterator[Configuration]:
    """Every configuration that ships."""
    yield from _labelled("", "", _routing())
    for name, dtype in DTYPES.items():
        for width, hidden in WIDTHS.items():
            if name == "bf16" or width == FULL_WIDTH:
                for calls in (
                    _rows(width, dtype), _scatter(width, dtype), _mlp(width, hidden, dtype),
                    _products(width, hidden, dtype), _two_bins(width, hidden, dtype),
                ):  # fmt: skip
                    yield from _labelled(f"D={width}", name, calls)
        yield from _labelled(f"D={FULL_WIDTH}", name, _every_tile(FULL_WIDTH, WIDTHS[FULL_WIDTH], dtype))
        for label, calls in _activations(dtype):
            yield from _labelled(label, name, calls)
        for label, calls in _prepared_heads(dtype):
            yield from _labelled(label, name, calls)
        for label, calls in _families_rows(dtype) if name == "bf16" else ():
            yield from _labelled(label, name, calls)
        for head_dim, heads in HEADS.items():
            if name == "bf16" or head_dim == FULL_HEAD_DIM:
                yield from _labelled(f"d={head_dim}", name, _attention(head_dim, heads, dtype))


def _labelled(size: str, dtype: str, calls: Calls) -> Iterator[Configuration]:
    for label, function, arguments in calls:
        yield Configuration(f"{size}{label}", dtype, function, arguments)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _packed(count: int = T, bins: Bins | None = None) -> PackedRows:
    return PackedRows(_empty(count, dtype=torch.int64), N, bins=bins)


def _cu_seqlens() -> Tensor:
    return _empty(B + 1, dtype=torch.int32)


def _linear(columns: int, inner: int, dtype: torch.dtype) -> Linear:
    return Linear(_empty(columns, inner, dtype=dtype), _empty(columns, dtype=dtype))


def _routing() -> Calls:
    yield "", row_map_of, (_packed(), B * N)
    yield f"N={N} unequal counts", route.select, (_empty(B, N, dtype=torch.float32), [K, K - 1])
    for tokens in (1024, 4096, 32768):
        logits = _empty(B, tokens, dtype=torch.float32)
        yield f"N={tokens}", route.select, (logits, [K] * B)
        yield f"N={tokens} two bins", route.select, (logits, [K] * B, [S // B] * B)


def _rows(width: int, dtype: torch.dtype) -> Calls:
    x, hidden, rows = _empty(B, N, width, dtype=dtype), _empty(T, width, dtype=dtype), _packed()
    weight, logits = _empty(width, dtype=dtype), _empty(B, N, dtype=torch.float32)
    shift, scale, gate = _empty(B, 6, width, dtype=dtype).unbind(1)[:3]
    yield "", route.router_logits, (x, weight, None)
    yield "", route.router_logits_backward, (logits, x, weight)
    yield " gather", adaln.gather_adaln, (x, rows, shift, scale, 1e-6)
    yield " gather, normed only", adaln.gather_adaln, (x, rows, shift, scale, 1e-6, "layer", False)
    yield "", adaln.adaln, (hidden, rows, shift, scale, 1e-6)
    yield " gather", adaln.adaln_backward, (hidden, rows, scale, 1e-6, hidden, hidden, B * N)
    yield "", adaln.adaln_backward, (hidden, rows, scale, 1e-6, None, hidden, None)
    yield "", gate_residual.gate_residual, (hidden, hidden, gate, rows)
    yield "", gate_residual.gate_residual_backward, (hidden, hidden, gate, rows)


def _families_rows(dtype: torch.dtype) -> Iterator[tuple[str, Calls]]:
    """Families: width, norm, rows of the modulation where tokens have groups, norm of the branches."""
    for label, width, norm, owners, of_branch in (
        ("LTX", 2048, "rms", B * N, None),
        ("Wan", 3072, "layer", B * N, None),
        ("Z-Image", 3840, "rms", None, "rms"),
        ("Bria FIBO 2", 3072, "rms", 2 * B, "rms"),
        ("EasyAnimate", 3072, "layer", None, "layer"),
    ):
        yield label, _family_rows(width, norm, owners, of_branch, dtype)


def _family_rows(
    width: int, norm: str, owners: int | None, of_branch: str | None, dtype: torch.dtype
) -> Calls:
    x, hidden, rows = _empty(B, N, width, dtype=dtype), _empty(T, width, dtype=dtype), _packed()
    rows.groups = None if owners is None else _empty(B, N, dtype=torch.int64)
    shift, scale, gate = _empty(owners or B, 6, width, dtype=dtype).unbind(1)[:3]
    if norm != "layer" or owners is not None:  # else they are those of `_rows`
        yield " gather", adaln.gather_adaln, (x, rows, shift, scale, 1e-6, norm)
        yield "", adaln.adaln, (hidden, rows, shift, scale, 1e-6, norm)
        yield " gather", adaln.adaln_backward, (hidden, rows, scale, 1e-6, hidden, hidden, B * N, norm)
    own, weight = None, _empty(width, dtype=dtype)
    if of_branch is not None:
        own = RowNorm(of_branch, weight, weight if of_branch == "layer" else None)
    yield "", gate_residual.gate_residual, (hidden, hidden, gate, rows, own)
    yield "", gate_residual.gate_residual_backward, (hidden, hidden, gate, rows, own)
    scores = _empty(B, N, dtype=torch.float32), Rescale()
    call = Finish(x, rows, hidden, hidden, gate, *scores, own)
    yield " mlp", scatter_rescale.scatter_rescale, (call,)
    yield " mlp", scatter_rescale.scatter_rescale_backward, (x, call)


def _prepared_heads(dtype: torch.dtype) -> Iterator[tuple[str, Calls]]:
    """Families' heads of query and of key, width of a head, norm, across heads, table of angles, halves."""
    for label, heads, few, width, kind, across, table, halves in (
        ("Flux", 24, 24, 128, "rms", False, (1, 1, 64), False),
        ("Wan", 40, 40, 128, "rms", True, (1, 1, 64), False),
        ("LTX", 32, 32, 64, "rms", True, (B, 32, 32), False),
        ("Z-Image", 30, 30, 128, "rms", False, (B, 1, 64), False),
        ("Krea", 24, 8, 128, "rms", False, (1, 1, 64), False),
        ("CogVideoX", 30, 30, 64, "layer", False, (1, 1, 32), False),
        ("MiniMax-H3", 24, 24, 128, "rms", False, (1, 1, 32), True),
        ("no norm", 16, 16, 72, None, False, (1, 1, 36), False),
    ):
        yield label, _heads(heads, few, width, kind, across, table, halves, dtype)


def _heads(heads, few, width, kind, across, table, halves, dtype) -> Calls:
    samples, groups, pairs = table
    packed = _empty(T, (heads + 2 * few) * width, dtype=dtype)
    parts = packed.split([heads * width, few * width, few * width], dim=1)
    rope = Rope(*(_empty(samples, N, groups, pairs, dtype=torch.float32) for _ in range(2)), halves)
    norm = None
    if kind is not None:
        sizes = (heads * width, few * width) if across else (width, width)
        weights = [_empty(size, dtype=dtype) for size in sizes]
        biases = [_empty(size, dtype=dtype) if kind == "layer" else None for size in sizes]
        norm = HeadNorm(kind, *weights, *biases, 1e-6, across)
    given, rows = Heads(*parts, heads, few), _packed()
    joint = _empty(2 * T, heads + 2 * few, width, dtype=dtype)
    yield "", qk_norm_rope.qk_norm_rope, (given, rows, norm, rope)
    yield " joint", qk_norm_rope.qk_norm_rope, (given, rows, norm, rope, joint, _cu_seqlens()[1:])
    grad = _empty(T, heads + 2 * few, width, dtype=dtype)
    yield " backward", qk_norm_rope.qk_norm_rope_backward, (grad, given, rows, norm, rope)


def _activations(dtype: torch.dtype) -> Iterator[tuple[str, Calls]]:
    """Families' width of an MLP, its activation, whether it is gated, and that of a parallel block."""
    for label, hidden, kind, gated, parallel in (
        ("Z-Image", 10240, "silu", True, False),
        ("ERNIE-Image", 12288, "gelu", True, False),
        ("PRX", 6272, "gelu_tanh", True, False),
        ("Flux single", 12288, "gelu_tanh", False, True),
        ("FLUX.2 single", 18432, "silu", True, True),
    ):
        yield label, _activation(hidden, kind, gated, parallel, dtype)


def _activation(hidden: int, kind: str, gated: bool, parallel: bool, dtype: torch.dtype) -> Calls:
    gate, value = _empty(2, T, hidden, dtype=dtype)
    scores = (_packed().index, _empty(B, N, dtype=torch.float32), 2.0) if parallel else ()
    given = Gated(gate, value if gated else None, kind, *scores)
    beside = _empty(T, hidden // 4 + hidden, dtype=dtype)[:, hidden // 4 :]
    yield "", activation.activation, (given, beside if parallel else gate)
    yield " backward", activation.activation_backward, (gate, given)


def _every_tile(width: int, hidden: int, dtype: torch.dtype) -> Calls:
    """Every tile of the table: calls with each of its numbers of rows, made odd."""
    x, logits = _empty(B, N, width, dtype=dtype), _empty(B, N, dtype=torch.float32)
    gate, scores = _empty(B, 6, width, dtype=dtype)[:, 2], (logits, Rescale())
    square, up, down = (
        _linear(*shape, dtype) for shape in ((width, width), (hidden, width), (width, hidden))
    )
    functions = {
        "linear_gelu": mlp.linear_gelu,
        "linear_gelu_backward": mlp.linear_gelu_backward,
        "linear_gate_residual": fused_gate_residual.linear_gate_residual,
        "linear_scatter": fused_scatter.linear_scatter,
    }
    for kernel, count in sorted({(entry.kernel, entry.rows | 1) for entry in tiles.PRODUCT_TILES}):
        rows, inner = _empty(count, width, dtype=dtype), _empty(count, hidden, dtype=dtype)
        arguments = {
            "linear_gelu": (rows, up),
            "linear_gelu_backward": (rows, down.weight, inner),
            "linear_gate_residual": (x, rows, square, gate, _packed(count)),
            "linear_scatter": (Finish(x, _packed(count), rows, inner, gate, *scores), down),
        }[kernel]
        backward = " backward" if kernel.endswith("backward") else ""
        yield f"{backward} T={count}", functions[kernel], arguments


def _modes(width: int, dtype: torch.dtype) -> tuple[str, ...]:
    every_mode = width == FULL_WIDTH and dtype == torch.bfloat16
    return ("mlp", "residual", "output", "none") if every_mode else ("mlp",)


def _products(width: int, hidden: int, dtype: torch.dtype) -> Calls:
    x, rows, packed = _empty(B, N, width, dtype=dtype), _empty(T, width, dtype=dtype), _packed()
    gate, out = _empty(B, 6, width, dtype=dtype)[:, 2], _linear(width, width, dtype)
    add = fused_gate_residual.linear_gate_residual
    yield "", add, (x, rows, out, gate, packed)
    if len(_modes(width, dtype)) > 1:
        yield " no gate", add, (rows, rows, out, None, packed)
    inner, fc2 = _empty(T, hidden, dtype=dtype), _linear(width, hidden, dtype)
    for mode in _modes(width, dtype):
        scores = _empty(B, N, dtype=torch.float32), Rescale(mode)
        yield f" {mode}", fused_scatter.linear_scatter, (Finish(x, packed, rows, inner, gate, *scores), fc2)


def _scatter(width: int, dtype: torch.dtype) -> Calls:
    x, hidden = _empty(B, N, width, dtype=dtype), _empty(T, width, dtype=dtype)
    gate, logits = _empty(B, 6, width, dtype=dtype)[:, 5], _empty(B, N, dtype=torch.float32)
    for mode in _modes(width, dtype):
        call = Finish(x, _packed(), hidden, hidden, gate, logits, Rescale(mode))
        yield f" {mode}", scatter_rescale.scatter_rescale, (call,)
        yield f" {mode} in place", scatter_rescale.scatter_rescale_, (call,)
        yield f" {mode}", scatter_rescale.scatter_rescale_backward, (x, call)


def _mlp(width: int, hidden: int, dtype: torch.dtype) -> Calls:
    rows, fc1 = _empty(T, width, dtype=dtype), _linear(hidden, width, dtype)
    weight, pre = _empty(width, hidden, dtype=dtype), _empty(T, hidden, dtype=dtype)
    yield " training", mlp.linear_gelu, (rows, fc1, None, pre)
    if width == FULL_WIDTH:
        yield " inference", mlp.linear_gelu, (rows, fc1)
        yield " exact GELU, training", mlp.linear_gelu, (rows, fc1, None, pre, "gelu")
        yield " exact GELU, backward", mlp.linear_gelu_backward, (rows, weight, pre, "gelu")
    yield " backward", mlp.linear_gelu_backward, (rows, weight, pre)


def _two_bins(width: int, hidden: int, dtype: torch.dtype) -> Calls:
    bins = Bins(_empty(B, dtype=torch.float32), _cu_seqlens(), _cu_seqlens(), T, S)
    pre, inner = _empty(T + S, hidden, dtype=dtype), _empty(T, hidden, dtype=dtype)
    yield "", two_bin_gelu.two_bin_gelu, (pre, bins)
    yield "", two_bin_gelu.two_bin_gelu_backward, (inner, pre, bins)
    x, both, branch = (_empty(*rows, width, dtype=dtype) for rows in ((B, N), (T + S,), (T,)))
    gate, logits = _empty(B, 6, width, dtype=dtype)[:, 5], _empty(B, N, dtype=torch.float32)
    for mode in _modes(width, dtype):
        call = Finish(x, _packed(bins=bins), both, branch, gate, logits, Rescale(mode))
        yield f" {mode}", two_bin_blend.two_bin_blend, (call,)
        yield f" {mode}", two_bin_blend.two_bin_blend_backward, (x, call)


def _attention(head_dim: int, heads: int, dtype: torch.dtype) -> Calls:
    query, key, value = _empty(T, 3, heads, head_dim, dtype=dtype).unbind(1)
    text_key, text_value = _empty(B * M, 2, heads, head_dim, dtype=dtype).unbind(1)
    out, lse = _empty(T, heads, head_dim, dtype=dtype), _empty(heads, T, dtype=torch.float32)
    among, few = (Seqlens(_cu_seqlens(), _cu_seqlens(), count, count) for count in (LONG, SHORT))
    lengths = _empty(B, dtype=torch.int32)
    to_text = Seqlens(_cu_seqlens(), _cu_seqlens(), K, M, lengths)
    forward, backward = attention.attention, attention.attention_backward
    labels = {" self": (query, key, value)}
    if head_dim in SHARED:
        fewer = heads // SHARED[head_dim]
        joined = _empty(T, heads + 2 * fewer, head_dim, dtype=dtype)
        labels[" shared keys"] = joined.split([heads, fewer, fewer], dim=1)
    for label, parts in labels.items():
        yield label, forward, (*parts, among, None, True)
        yield f"{label} short", forward, (*parts, few, None, True)
        yield label, backward, (out, *parts, out, lse, among, None)
        if head_dim <= tiles.LARGEST_HEAD_DIM_OF_TWO_BINS:
            yield from _two_bin_attention(label, *parts)
    if head_dim == FULL_HEAD_DIM:
        yield " self inference", forward, (query, key, value, among, None)
        yield " cross", forward, (out, text_key, text_value, to_text, None, True)
        yield " cross", backward, (out, out, text_key, text_value, out, lse, to_text, None)


def _two_bin_attention(label: str, query: Tensor, key: Tensor, value: Tensor) -> Calls:
    _, heads, head_dim = query.shape
    out, lse = _empty(T + S, heads, head_dim, dtype=query.dtype), _empty(heads, T + S, dtype=torch.float32)
    nested, few = (Nested(_cu_seqlens(), _cu_seqlens(), count, S // B, S) for count in (LONG, SHORT))
    for short, seqlens in {"": nested, " short": few}.items():
        forward = two_bin_attention.two_bin_attention
        yield f"{label}{short}", forward, (query, key, value, seqlens, None, True)
    backward = two_bin_attention.two_bin_attention_backward
    yield label, backward, (out, query, key, value, out, lse, nested, None)
