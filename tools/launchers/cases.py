"""What every Triton kernel is tested with: random arguments, its results, and the reference's.

The results of an operator are all outputs of its forward and backward functions by name, "d x" for the
gradient of x; incoming gradients are arguments like any other.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F

from diffratio_kernels import reference
from diffratio_kernels._backends import kernels
from diffratio_kernels._checks import ACTIVATIONS
from diffratio_kernels.ops.activation.reference import activated
from diffratio_kernels.types import Linear, Seqlens

from .draw import HEAD_DIMS, SHARED, TOKENS, WIDTHS, Draw, Operator, differentiate
from .rows import ADALN, GATE, SCATTER


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


def draw_linear_gelu(draw: Draw) -> dict:
    rows, inner = draw.choice(0, 1, 5, 16, 33, 130, 300), draw.choice(*WIDTHS)
    rows = min(rows, 16) if inner > 1000 else rows
    hidden, width = draw.choice(8, 24, 40, 136, 200), draw.choice(8, 40, 72)
    return {
        "rows": draw.tensor(rows, inner),
        "weight": draw.tensor(hidden, inner, std=inner**-0.5),
        "bias": draw.choice(None, draw.tensor(hidden)),
        "keep_pre": draw.choice(False, True),
        "kind": draw.choice(*ACTIVATIONS),
        "grad": draw.tensor(rows, width),
        "next_weight": draw.tensor(width, hidden, std=hidden**-0.5),
        "pre": draw.tensor(rows, hidden, std=2.0),
    }


def linear_gelu(rows, weight, bias, keep_pre, kind, grad, next_weight, pre):
    triton, fc1 = kernels("mlp", "triton"), Linear(weight, bias)
    grad_pre, again = triton.linear_gelu_backward(grad, next_weight, pre, kind)
    results = {"d pre": grad_pre, "inner again": again}
    if keep_pre:
        kept = torch.empty(pre.shape, dtype=rows.dtype, device=rows.device)
        return results | {"inner": triton.linear_gelu(rows, fc1, pre=kept, kind=kind), "pre": kept}
    return results | {"inner": triton.linear_gelu(rows, fc1, kind=kind)}


def reference_linear_gelu(rows, weight, bias, keep_pre, kind, grad, next_weight, pre):
    kept = F.linear(rows, weight, bias)
    pre = pre.detach().requires_grad_()
    again = activated(pre, kind)
    (grad_pre,) = torch.autograd.grad(again, pre, grad @ next_weight)
    results = {"inner": activated(kept, kind), "d pre": grad_pre, "inner again": again.detach()}
    return results | ({"pre": kept} if keep_pre else {})


def draw_attention(draw: Draw) -> dict:
    """Self-attention on q, k, v joined as the projection gives them, or ragged cross-attention."""
    samples, (heads, few), head_dim = (
        draw.choice(0, 1, 1, 2, 3),
        draw.choice(*SHARED),
        draw.choice(*HEAD_DIMS),
    )
    queries = draw.lengths(samples, draw.choice(1, 17, 40, 70))
    rows, key_lengths = sum(queries), None
    if draw.choice("self", "cross", "cross") == "self":
        keys = queries
        query, key, value = draw.heads(rows, heads, few, head_dim)
    else:
        longest = draw.choice(1, 9, 33, 130)
        keys = draw.choice([longest] * samples, draw.lengths(samples, longest))
        query = draw.tensor(rows, heads, head_dim)
        key, value = draw.tensor(sum(keys), 2, few, head_dim).unbind(1)
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
    **ADALN,
    **GATE,
    "attention": Operator(draw_attention, attention, reference_attention),
    "linear_gelu": Operator(draw_linear_gelu, linear_gelu, reference_linear_gelu),
    **SCATTER,
}
