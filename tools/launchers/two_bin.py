"""What the Triton kernels of two bins are tested with; see cases.py."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diffratio_kernels import reference
from diffratio_kernels._backends import kernels
from diffratio_kernels.types import Bins, Finish, Nested, PackedRows, Rescale

from .draw import HEAD_DIMS, SHARED, TOKENS, WIDTHS, Draw, Operator, differentiate

TWO_BIN_HEAD_DIMS = tuple(d for d in HEAD_DIMS if d <= 128)


def draw_bins(draw: Draw, samples: int, longest: int) -> dict:
    """Kept counts of both bins, equal, none and all among them, and the weight of the larger."""
    keep_large = draw.lengths(samples, longest)
    keep_small = [draw.choice(0, k, *(draw.random.randint(0, k) for _ in range(4))) for k in keep_large]
    weights = [
        draw.choice(0.0, 1.0, draw.random.random(), draw.random.random(), -1.5, 2.5) for _ in keep_large
    ]
    return {"keep_large": keep_large, "keep_small": keep_small, "weight_large": torch.tensor(weights)}


def bins_of(weight_large: Tensor, keep_large: list[int], keep_small: list[int]) -> Bins:
    cu_seqlens = (reference.cu_seqlens_of(keep, weight_large.device) for keep in (keep_large, keep_small))
    return Bins(weight_large, *cu_seqlens, sum(keep_large), sum(keep_small))


def row_by_row(weight_large: Tensor, keep_large: list[int], keep_small: list[int]) -> Bins:
    """The same bins as T samples of one row each: the gradients of their weights [T] are what each row adds
    to that of its sample's weight."""
    in_small = [int(t < k) for large, k in zip(keep_large, keep_small, strict=True) for t in range(large)]
    counts = torch.tensor(keep_large, dtype=torch.int64, device=weight_large.device)
    weights = weight_large.repeat_interleave(counts)
    return bins_of(weights, [1] * len(in_small), in_small)


def draw_two_bin_gelu(draw: Draw) -> dict:
    bins = draw_bins(draw, draw.choice(0, 1, 2, 3, 4, 7), draw.choice(1, 5, 12))
    rows, small = sum(bins["keep_large"]), sum(bins["keep_small"])
    width = draw.choice(8, 12, 40, 129, 1032)
    return {**bins, "pre": draw.tensor(rows + small, width, std=2.0), "grad": draw.tensor(rows, width)}


def two_bin_gelu(keep_large, keep_small, weight_large, pre, grad):
    triton, bins = kernels("two_bin_gelu", "triton"), bins_of(weight_large, keep_large, keep_small)
    grad_pre, dots = triton.two_bin_gelu_backward(grad, pre, bins)
    return {"inner": triton.two_bin_gelu(pre, bins), "d pre": grad_pre, "d weights": dots}


def reference_two_bin_gelu(keep_large, keep_small, weight_large, pre, grad):
    bins = row_by_row(weight_large, keep_large, keep_small)

    def function(pre, weights):
        return {"inner": reference.two_bin_gelu(pre, replace(bins, weight_large=weights))}

    return differentiate(function, {"pre": pre, "weights": bins.weight_large}, [grad])


def draw_two_bin_blend(draw: Draw) -> dict:
    batch, tokens, width = draw.choice(0, 1, 2, 2, 3, 4), draw.choice(*TOKENS), draw.choice(*WIDTHS)
    bins = draw_bins(draw, batch, tokens)
    scores = draw.tensor(batch, tokens, dtype=torch.float32)
    index, _ = reference.select_tokens(scores, bins["keep_large"], bins["keep_small"])
    return {
        **bins,
        "x": draw.tensor(batch, tokens, width),
        "index": index,
        "hidden": draw.tensor(index.shape[0] + sum(bins["keep_small"]), width),
        "branch": draw.tensor(index.shape[0], width),
        "gate": draw.modulation(batch, width)[2],
        "logits": draw.tensor(batch, tokens, dtype=torch.float32),
        "rescale": draw.choice("mlp", "residual", "output", "none"),
        "score_scale": draw.choice(1.0, 2.0),
        "grad_out": draw.tensor(batch, tokens, width),
    }


def two_bin_blend(
    keep_large, keep_small, weight_large, x, index, hidden, branch, gate, logits, rescale, score_scale,
    grad_out,
):  # fmt: skip
    triton, bins = kernels("two_bin_blend", "triton"), bins_of(weight_large, keep_large, keep_small)
    rows = PackedRows(index, x.shape[1], bins=bins)
    call = Finish(x, rows, hidden, branch, gate, logits, Rescale(rescale, score_scale))
    *grads, dots = triton.two_bin_blend_backward(grad_out, call)
    return {
        "out": triton.two_bin_blend(call),
        **dict(zip(("d x", "d hidden", "d branch", "d gate", "d logits"), grads, strict=True)),
        "d weights": dots,
    }


def reference_two_bin_blend(
    keep_large, keep_small, weight_large, x, index, hidden, branch, gate, logits, rescale, score_scale,
    grad_out,
):  # fmt: skip
    bins, how = row_by_row(weight_large, keep_large, keep_small), Rescale(rescale, score_scale)

    def function(x, hidden, branch, gate, logits, weights):
        rows = PackedRows(index, x.shape[1], bins=replace(bins, weight_large=weights))
        return {"out": reference.two_bin_blend(Finish(x, rows, hidden, branch, gate, logits, how))}

    leaves = {"x": x, "hidden": hidden, "branch": branch, "gate": gate, "logits": logits}
    return differentiate(function, leaves | {"weights": bins.weight_large}, [grad_out])


def draw_two_bin_attention(draw: Draw) -> dict:
    """q, k, v joined as the projection gives them; blocks of one bin, of both, and several of either."""
    samples, head_dim = draw.choice(0, 1, 1, 2, 3), draw.choice(*TWO_BIN_HEAD_DIMS)
    heads, few = draw.choice(*SHARED)
    bins = draw_bins(draw, samples, draw.choice(1, 17, 40, 70, 140))
    rows, small = sum(bins["keep_large"]), sum(bins["keep_small"])
    query, key, value = draw.heads(rows, heads, few, head_dim)
    return {
        "keep_large": bins["keep_large"], "keep_small": bins["keep_small"],
        "query": query, "key": key, "value": value,
        "spare": draw.choice(0, 0, 40), "scale": draw.choice(None, 0.2),
        "grad_out": draw.tensor(rows + small, heads, head_dim),
    }  # fmt: skip


def nested_of(keep_large: list[int], keep_small: list[int], spare: int, device: torch.device) -> Nested:
    """Samples of these counts; the longest are said to have `spare` rows more than they have."""
    cu_seqlens = (reference.cu_seqlens_of(keep, device) for keep in (keep_large, keep_small))
    longest = (max(keep, default=0) + spare for keep in (keep_large, keep_small))
    return Nested(*cu_seqlens, *longest, sum(keep_small))


def two_bin_attention(keep_large, keep_small, query, key, value, spare, scale, grad_out):
    triton = kernels("two_bin_attention", "triton")
    nested = nested_of(keep_large, keep_small, spare, query.device)
    out, lse = triton.two_bin_attention(query, key, value, nested, scale, save_lse=True)
    grads = triton.two_bin_attention_backward(grad_out, query, key, value, out, lse, nested, scale)
    return {
        "out": out,
        "out, inference": triton.two_bin_attention(query, key, value, nested, scale),
        **dict(zip(("d query", "d key", "d value"), grads, strict=True)),
    }


def reference_two_bin_attention(keep_large, keep_small, query, key, value, spare, scale, grad_out):
    nested = nested_of(keep_large, keep_small, spare, query.device)

    def function(query, key, value):
        return {"out": reference.two_bin_attention(query, key, value, nested, scale)}

    results = differentiate(function, {"query": query, "key": key, "value": value}, [grad_out])
    return results | {"out, inference": results["out"]}


TWO_BIN = {
    "two_bin_gelu": Operator(draw_two_bin_gelu, two_bin_gelu, reference_two_bin_gelu),
    "two_bin_blend": Operator(draw_two_bin_blend, two_bin_blend, reference_two_bin_blend),
    "two_bin_attention": Operator(draw_two_bin_attention, two_bin_attention, reference_two_bin_attention),
}
