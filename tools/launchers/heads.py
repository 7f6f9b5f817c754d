"""`qk_norm_rope` as the operators of cases.py: norms, tables of angles, places of two streams."""

from __future__ import annotations

import torch

from diffratio_kernels import reference
from diffratio_kernels._backends import kernels
from diffratio_kernels.ops.qk_norm_rope import reference as exact
from diffratio_kernels.types import HeadNorm, Heads, PackedRows, Rope

from .draw import Draw, Operator, differentiate

HEADS = (1, 2, 3, 6, 12)
WIDTHS = (2, 8, 24, 40, 64, 72, 128, 128, 256)
MOST_CHANNELS = 768
LEAVES = ("query", "key", "query_weight", "key_weight", "query_bias", "key_bias")


def draw_qk_norm_rope(draw: Draw) -> dict:
    batch, tokens = draw.choice(0, 1, 1, 2, 3), draw.choice(1, 2, 5, 5, 9)
    index, _ = reference.select_tokens(
        draw.tensor(batch, tokens, dtype=torch.float32), draw.lengths(batch, tokens)
    )
    width = draw.choice(*WIDTHS)
    heads = draw.choice(*(count for count in HEADS if count * width <= MOST_CHANNELS))
    few = draw.choice(*(count for count in HEADS if heads % count == 0))
    parts = draw.tensor(len(index), (heads + 2 * few) * width)
    parts = parts.split([heads * width, few * width, few * width], dim=1)
    norm, across = draw.choice("none", "rms", "rms", "layer"), draw.choice(False, False, True)
    weights = {}
    if norm != "none":
        dtype = draw.choice(draw.dtype, torch.float32)
        with_bias = draw.choice(norm == "layer", norm == "layer", True)
        for name, count in zip(LEAVES[2:], (heads, few) * 2, strict=True):
            drawn = draw.tensor(width * (count if across else 1), std=0.3, dtype=dtype)
            weights[name] = drawn + 1 if name.endswith("weight") else drawn if with_bias else None
    pairs = draw.choice(width // 2, width // 2, max(width // 6, 1))
    groups = draw.choice(1, heads if heads == few else 1)
    angle = 2 * draw.tensor(draw.choice(1, max(batch, 1)), tokens, groups, pairs, dtype=torch.float32)
    turns = draw.choice(False, True, True)
    return {
        **dict(zip(("query", "key", "value"), parts, strict=True)), "index": index, "tokens": tokens,
        "heads": heads, "kv_heads": few, "norm": norm, "across_heads": across, **weights,
        "cos": angle.cos() if turns else None, "sin": angle.sin() if turns else None,
        "halves": draw.choice(False, True), "others": draw.random.randint(0, 3),
        "grad_out": draw.tensor(len(index), heads + 2 * few, width),
    }  # fmt: skip


def bundles(a: dict) -> tuple[Heads, PackedRows, HeadNorm | None, Rope | None]:
    """What the launchers take of all these arguments."""
    norm = None
    if a["norm"] != "none":
        norm = HeadNorm(a["norm"], *(a[name] for name in LEAVES[2:]), 1e-5, a["across_heads"])
    rope = None if a["cos"] is None else Rope(a["cos"], a["sin"], a["halves"])
    heads = Heads(a["query"], a["key"], a["value"], a["heads"], a["kv_heads"])
    return heads, PackedRows(a["index"], a["tokens"]), norm, rope


def joint(a: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows for `others` rows of another stream behind those of each sample, and how far each sample moves."""
    samples = int(a["index"].max()) // a["tokens"] + 1 if len(a["index"]) else 1
    grad = a["grad_out"]
    room = grad.new_full((grad.shape[0] + samples * a["others"], *grad.shape[1:]), 7)
    return room, a["others"] * torch.arange(samples, dtype=torch.int32, device=grad.device)


def qk_norm_rope(**a):
    triton, given, (room, shift) = kernels("qk_norm_rope", "triton"), bundles(a), joint(a)
    grads = triton.qk_norm_rope_backward(a["grad_out"], *given)
    return {
        "out": triton.qk_norm_rope(*given),
        "placed": triton.qk_norm_rope(*given, room, shift),
        **{f"d {name}": grad for name, grad in zip(LEAVES, grads, strict=True) if a.get(name) is not None},
    }


def reference_qk_norm_rope(**a):
    def function(**leaves):
        return {"out": exact.qk_norm_rope(*bundles(a | leaves))}

    leaves = {name: a[name] for name in LEAVES if name in a}
    results = differentiate(function, leaves, [a["grad_out"]])
    room, shift = joint(a)
    return results | {"placed": exact.placed(results["out"], bundles(a)[1], room, shift)}


OF_HEADS = {"qk_norm_rope": Operator(draw_qk_norm_rope, qk_norm_rope, reference_qk_norm_rope)}
