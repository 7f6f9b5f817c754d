"""What every Triton kernel is tested with: random arguments, its results, and the reference's.

The results of an operator are all outputs of its forward and backward functions by name, "d x" for the
gradient of x; incoming gradients are arguments like any other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from diffratio_kernels import reference
from diffratio_kernels._backends import kernels
from diffratio_kernels.types import Finish, Linear, PackedRows, Rescale, Seqlens

WIDTHS = (8, 12, 24, 24, 40, 40, 72, 72, 129, 136, 1152)
TOKENS = (1, 2, 5, 9, 9, 17, 17, 33, 40)
HEAD_DIMS = (8, 16, 24, 32, 40, 64, 72, 72, 80, 96, 104, 128, 136, 192, 256)


class Draw:
    """Choices and tensors from one seed; tensors are drawn in fp32 and rounded."""

    def __init__(self, seed: int, dtype: torch.dtype, again: int = 0):
        """again: the same choices with other tensors."""
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed + 1_000_003 * again)
        self.dtype = dtype

    def choice(self, *values):
        return self.random.choice(values)

    def tensor(self, *shape: int, std: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return (torch.randn(*shape, generator=self.generator) * std).to(dtype or self.dtype)

    def lengths(self, samples: int, longest: int) -> list[int]:
        """A count in 0..longest per sample, often an end of that range."""
        inside = self.random.randint
        return [self.choice(0, 1, longest, *(inside(0, longest) for _ in range(4))) for _ in range(samples)]

    def modulation(self, batch: int, width: int) -> tuple[Tensor, ...]:
        """shift, scale, gate [B, D], views of one tensor in the working dtype or fp32."""
        dtype = self.choice(self.dtype, torch.float32)
        return self.tensor(batch, 6, width, std=0.5, dtype=dtype).unbind(1)[:3]


@dataclass(frozen=True)
class Operator:
    """draw: arguments by name; kernels, reference: all results by name, from these arguments."""

    draw: Callable[[Draw], dict]
    kernels: Callable[..., dict[str, Tensor]]
    reference: Callable[..., dict[str, Tensor]]


def differentiate(function: Callable, leaves: dict, incoming: list[Tensor | None]) -> dict[str, Tensor]:
    """The tensors by name that `function(**leaves)` gives, and the gradient of each leaf but None."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in leaves.items()}
    outs = function(**leaves)
    leaves = {name: t for name, t in leaves.items() if t is not None}
    reached = [
        (out, grad)
        for out, grad in zip(outs.values(), incoming, strict=True)
        if grad is not None and out.requires_grad
    ]
    grads = [torch.zeros_like(t) for t in leaves.values()]
    if reached:
        outputs, incoming = zip(*reached, strict=True)
        grads = torch.autograd.grad(outputs, list(leaves.values()), incoming, materialize_grads=True)
    return {name: out.detach() for name, out in outs.items()} | {
        f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)
    }


def draw_router_logits(draw: Draw) -> dict:
    batch, tokens, width = draw.choice(0, 1, 1, 2, 3), draw.choice(*TOKENS), draw.choice(*WIDTHS)
    weight_dtype = draw.choice(draw.dtype, torch.float32)
    return {
        "x": draw.tensor(batch, tokens, width),
        "router_weight": draw.tensor(width, dtype=weight_dtype),
        "router_bias": draw.choice(None, draw.tensor(1, dtype=weight_dtype)),
        "grad_logits": draw.tensor(batch, tokens, dtype=torch.float32),
    }


def router_logits(x, router_weight, router_bias, grad_logits):
    triton = kernels("route", "triton")
    grads = triton.router_logits_backward(grad_logits, x, router_weight)
    return {
        "logits": triton.router_logits(x, router_weight, router_bias),
        **dict(zip(("d x", "d router_weight"), grads, strict=True)),
    }


def reference_router_logits(x, router_weight, router_bias, grad_logits):
    def function(x, router_weight):
        return {"logits": reference.router_logits(x, router_weight, router_bias)}

    return differentiate(function, {"x": x, "router_weight": router_weight}, [grad_logits])


def draw_select(draw: Draw) -> dict:
    batch, tokens = draw.choice(0, 1, 2, 3), draw.choice(*TOKENS, 300, 1025)
    keep = draw.lengths(batch, tokens)
    logits = draw.tensor(batch, tokens, dtype=torch.float32)
    ties = draw.choice(False, True)
    return {
        "logits": (2 * logits).round() if ties else logits,
        "keep": keep,
        "keep_small": draw.choice(None, [draw.random.randint(0, k) for k in keep]),
    }


def select(logits, keep, keep_small):
    index, cu_seqlens, row_map = kernels("route", "triton").select(logits, keep, keep_small)
    return {"index": index, "cu_seqlens": cu_seqlens, "row_map": row_map}


def reference_select(logits, keep, keep_small):
    index, cu_seqlens = reference.select_tokens(logits, keep, keep_small)
    row_map = torch.full((logits.numel(),), -1, dtype=torch.int32, device=logits.device)
    row_map[index] = torch.arange(len(index), dtype=torch.int32, device=logits.device)
    return {"index": index, "cu_seqlens": cu_seqlens, "row_map": row_map}


def draw_kept(draw: Draw) -> tuple[int, int, int, Tensor]:
    """B, N, D and the index of kept rows, in the order of one bin, of two, or in none."""
    batch, tokens, width = draw.choice(0, 1, 1, 2, 2, 3), draw.choice(*TOKENS), draw.choice(*WIDTHS)
    keep = draw.lengths(batch, tokens)
    small = draw.choice(None, [draw.random.randint(0, k) for k in keep])
    index, _ = reference.select_tokens(draw.tensor(batch, tokens, dtype=torch.float32), keep, small)
    shuffled = index[torch.randperm(index.shape[0], generator=draw.generator)]
    return batch, tokens, width, draw.choice(index, index, index, shuffled)


def draw_gather_adaln(draw: Draw) -> dict:
    batch, tokens, width, index = draw_kept(draw)
    shift, scale, _ = draw.modulation(batch, width)
    return {
        "x": draw.tensor(batch, tokens, width),
        "index": index,
        "shift": shift,
        "scale": scale,
        "eps": draw.choice(1e-6, 1e-5),
        "grad_rows": draw.choice(None, draw.tensor(index.shape[0], width)),
        "grad_normed": draw.tensor(index.shape[0], width),
    }


def gather_adaln(x, index, shift, scale, eps, grad_rows, grad_normed):
    batch, tokens, _ = x.shape
    triton, packed = kernels("adaln", "triton"), PackedRows(index, tokens)
    rows, normed = triton.gather_adaln(x, packed, shift, scale, eps)
    grads = triton.adaln_backward(rows, packed, scale, eps, grad_rows, grad_normed, batch * tokens)
    return {
        "rows": rows,
        "normed": normed,
        "normed only": triton.gather_adaln(x, packed, shift, scale, eps, keep_rows=False)[1],
        "d x": grads[0].view(x.shape),
        **dict(zip(("d shift", "d scale"), grads[1:], strict=True)),
    }


def reference_gather_adaln(x, index, shift, scale, eps, grad_rows, grad_normed):
    def function(x, shift, scale):
        rows, normed = reference.gather_adaln(x, PackedRows(index, x.shape[1]), shift, scale, eps)
        return {"rows": rows, "normed": normed}

    leaves = {"x": x, "shift": shift, "scale": scale}
    results = differentiate(function, leaves, [grad_rows, grad_normed])
    return results | {"normed only": results["normed"]}


def draw_adaln(draw: Draw) -> dict:
    batch, tokens, width, index = draw_kept(draw)
    shift, scale, _ = draw.modulation(batch, width)
    return {
        "rows": draw.tensor(index.shape[0], width),
        "index": index,
        "tokens": tokens,
        "shift": shift,
        "scale": scale,
        "eps": 1e-6,
        "grad_normed": draw.tensor(index.shape[0], width),
    }


def adaln(rows, index, tokens, shift, scale, eps, grad_normed):
    triton, packed = kernels("adaln", "triton"), PackedRows(index, tokens)
    grads = triton.adaln_backward(rows, packed, scale, eps, None, grad_normed, None)
    return {
        "normed": triton.adaln(rows, packed, shift, scale, eps),
        **dict(zip(("d rows", "d shift", "d scale"), grads, strict=True)),
    }


def reference_adaln(rows, index, tokens, shift, scale, eps, grad_normed):
    def function(rows, shift, scale):
        return {"normed": reference.adaln(rows, PackedRows(index, tokens), shift, scale, eps)}

    return differentiate(function, {"rows": rows, "shift": shift, "scale": scale}, [grad_normed])


def draw_gate_residual(draw: Draw) -> dict:
    batch, tokens, width, index = draw_kept(draw)
    hidden, branch, grad_out = (draw.tensor(index.shape[0], width) for _ in range(3))
    gate = draw.modulation(batch, width)[2]
    return {
        "hidden": hidden, "branch": branch, "gate": gate, "index": index, "tokens": tokens,
        "grad_out": grad_out,
    }  # fmt: skip


def gate_residual(hidden, branch, gate, index, tokens, grad_out):
    copy = hidden.clone(memory_format=torch.contiguous_format)
    triton, packed = kernels("gate_residual", "triton"), PackedRows(index, tokens)
    grads = triton.gate_residual_backward(grad_out, branch, gate, packed)
    return {
        "out": triton.gate_residual(hidden, branch, gate, packed),
        "out in place": triton.gate_residual(copy, branch, gate, packed, in_place=True),
        **dict(zip(("d branch", "d gate"), grads, strict=True)),
    }


def reference_gate_residual(hidden, branch, gate, index, tokens, grad_out):
    def function(branch, gate):
        return {"out": reference.gate_residual(hidden, branch, gate, PackedRows(index, tokens))}

    results = differentiate(function, {"branch": branch, "gate": gate}, [grad_out])
    return results | {"out in place": results["out"]}


def draw_linear_gelu(draw: Draw) -> dict:
    rows, inner = draw.choice(0, 1, 5, 16, 33, 130, 300), draw.choice(*WIDTHS)
    rows = min(rows, 16) if inner > 1000 else rows
    hidden, width = draw.choice(8, 24, 40, 136, 200), draw.choice(8, 40, 72)
    return {
        "rows": draw.tensor(rows, inner),
        "weight": draw.tensor(hidden, inner, std=inner**-0.5),
        "bias": draw.choice(None, draw.tensor(hidden)),
        "keep_pre": draw.choice(False, True),
        "grad": draw.tensor(rows, width),
        "next_weight": draw.tensor(width, hidden, std=hidden**-0.5),
        "pre": draw.tensor(rows, hidden, std=2.0),
    }


def linear_gelu(rows, weight, bias, keep_pre, grad, next_weight, pre):
    triton, fc1 = kernels("mlp", "triton"), Linear(weight, bias)
    grad_pre, again = triton.linear_gelu_backward(grad, next_weight, pre)
    results = {"d pre": grad_pre, "inner again": again}
    if keep_pre:
        kept = torch.empty(pre.shape, dtype=rows.dtype, device=rows.device)
        return results | {"inner": triton.linear_gelu(rows, fc1, pre=kept), "pre": kept}
    return results | {"inner": triton.linear_gelu(rows, fc1)}


def reference_linear_gelu(rows, weight, bias, keep_pre, grad, next_weight, pre):
    kept = F.linear(rows, weight, bias)
    pre = pre.detach().requires_grad_()
    again = F.gelu(pre, approximate="tanh")
    (grad_pre,) = torch.autograd.grad(again, pre, grad @ next_weight)
    results = {"inner": F.gelu(kept, approximate="tanh"), "d pre": grad_pre, "inner again": again.detach()}
    return results | ({"pre": kept} if keep_pre else {})


def draw_scatter_rescale(draw: Draw) -> dict:
    batch, tokens, width, index = draw_kept(draw)
    return {
        "x": draw.tensor(batch, tokens, width),
        "index": index,
        "hidden": draw.tensor(index.shape[0], width),
        "branch": draw.tensor(index.shape[0], width),
        "gate": draw.modulation(batch, width)[2],
        "logits": draw.tensor(batch, tokens, dtype=torch.float32),
        "rescale": draw.choice("mlp", "residual", "output", "none"),
        "score_scale": draw.choice(1.0, 2.0),
        "grad_out": draw.tensor(batch, tokens, width),
    }


def scatter_rescale(x, index, hidden, branch, gate, logits, rescale, score_scale, grad_out):
    triton, rows = kernels("scatter_rescale", "triton"), PackedRows(index, x.shape[1])
    call = Finish(x, rows, hidden, branch, gate, logits, Rescale(rescale, score_scale))
    in_place = x.clone(memory_format=torch.contiguous_format)
    triton.scatter_rescale_(replace(call, x=in_place))
    grads = triton.scatter_rescale_backward(grad_out, call)
    return {
        "out": triton.scatter_rescale(call),
        "out in place": in_place,
        **dict(zip(("d x", "d hidden", "d branch", "d gate", "d logits"), grads, strict=True)),
    }


def reference_scatter_rescale(x, index, hidden, branch, gate, logits, rescale, score_scale, grad_out):
    rows, how = PackedRows(index, x.shape[1]), Rescale(rescale, score_scale)

    def function(x, hidden, branch, gate, logits):
        return {"out": reference.scatter_rescale(Finish(x, rows, hidden, branch, gate, logits, how))}

    leaves = {"x": x, "hidden": hidden, "branch": branch, "gate": gate, "logits": logits}
    results = differentiate(function, leaves, [grad_out])
    return results | {"out in place": results["out"]}


def draw_attention(draw: Draw) -> dict:
    """Self-attention on q, k, v joined as the projection gives them, or ragged cross-attention."""
    samples, heads, head_dim = draw.choice(0, 1, 1, 2, 3), draw.choice(1, 1, 2), draw.choice(*HEAD_DIMS)
    queries = draw.lengths(samples, draw.choice(1, 17, 40, 70))
    rows, key_lengths = sum(queries), None
    if draw.choice("self", "cross", "cross") == "self":
        keys = queries
        query, key, value = draw.tensor(rows, 3, heads, head_dim).unbind(1)
    else:
        longest = draw.choice(1, 9, 33, 130)
        keys = draw.choice([longest] * samples, draw.lengths(samples, longest))
        query = draw.tensor(rows, heads, head_dim)
        key, value = draw.tensor(sum(keys), 2, heads, head_dim).unbind(1)
        key_lengths = draw.choice(None, [draw.choice(0, m, draw.random.randint(0, m)) for m in keys])
        for end, room, count in zip(accumulate(keys), keys, key_lengths or keys, strict=True):
            key[end - room + count : end] = value[end - room + count : end] = float("nan")
    return {
        "query": query, "key": key, "value": value, "queries": queries, "keys": keys,
        "spare": draw.choice(0, 0, 40), "key_lengths": key_lengths, "scale": draw.choice(None, 0.2),
        "grad_out": draw.tensor(rows, heads, head_dim),
    }  # fmt: skip


def seqlens_of(
    queries: list[int], keys: list[int], spare: int, key_lengths: list[int] | None, device: torch.device
) -> Seqlens:
    """Samples of these lengths; the longest are said to have `spare` rows more than they have."""
    cu_seqlens = (reference.cu_seqlens_of(lengths, device) for lengths in (queries, keys))
    longest = (max(lengths, default=0) + spare for lengths in (queries, keys))
    if key_lengths is not None:
        key_lengths = torch.tensor(key_lengths, dtype=torch.int32, device=device)
    return Seqlens(*cu_seqlens, *longest, key_lengths)


def attention(query, key, value, queries, keys, spare, key_lengths, scale, grad_out):
    triton, seqlens = (
        kernels("attention", "triton"),
        seqlens_of(queries, keys, spare, key_lengths, query.device),
    )
    out, lse = triton.attention(query, key, value, seqlens, scale, save_lse=True)
    grads = triton.attention_backward(grad_out, query, key, value, out, lse, seqlens, scale)
    return {
        "out": out,
        "out, inference": triton.attention(query, key, value, seqlens, scale),
        **dict(zip(("d query", "d key", "d value"), grads, strict=True)),
    }


def reference_attention(query, key, value, queries, keys, spare, key_lengths, scale, grad_out):
    seqlens = seqlens_of(queries, keys, spare, key_lengths, query.device)

    def function(query, key, value):
        return {"out": reference.attention(query, key, value, seqlens, scale)}

    results = differentiate(function, {"query": query, "key": key, "value": value}, [grad_out])
    return results | {"out, inference": results["out"]}


OPERATORS = {
    "router_logits": Operator(draw_router_logits, router_logits, reference_router_logits),
    "select": Operator(draw_select, select, reference_select),
    "gather_adaln": Operator(draw_gather_adaln, gather_adaln, reference_gather_adaln),
    "adaln": Operator(draw_adaln, adaln, reference_adaln),
    "gate_residual": Operator(draw_gate_residual, gate_residual, reference_gate_residual),
    "attention": Operator(draw_attention, attention, reference_attention),
    "linear_gelu": Operator(draw_linear_gelu, linear_gelu, reference_linear_gelu),
    "scatter_rescale": Operator(draw_scatter_rescale, scatter_rescale, reference_scatter_rescale),
}
