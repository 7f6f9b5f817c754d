"""The same as cases.py for the products that end in the residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from diffratio_kernels import reference
from diffratio_kernels._backends import kernels
from diffratio_kernels.types import Finish, Linear, PackedRows, Rescale

from .draw import Draw, Operator, draw_kept


def draw_linear_gate_residual(draw: Draw) -> dict:
    batch, tokens, _, index = draw_kept(draw)
    width, inner = draw.choice(8, 24, 40, 136, 200), draw.choice(8, 40, 72, 129)
    return {
        "hidden": draw.tensor(index.shape[0], width),
        "rows": draw.tensor(index.shape[0], inner),
        "weight": draw.tensor(width, inner, std=inner**-0.5),
        "bias": draw.choice(None, draw.tensor(width)),
        "gate": draw.modulation(batch, width)[2],
        "gated": draw.choice(True, True, False),
        "index": index,
        "tokens": tokens,
        "x": draw.tensor(batch, tokens, width),
    }


def linear_gate_residual(hidden, rows, weight, bias, gate, gated, index, tokens, x):
    fused = kernels("fused_linear", "gate_residual").linear_gate_residual
    rest = rows, Linear(weight, bias), gate if gated else None, PackedRows(index, tokens)
    copy = hidden.clone(memory_format=torch.contiguous_format)
    return {
        "joined": fused(hidden, *rest),
        "joined in place": fused(copy, *rest, in_place=True),
        "joined from x": fused(x, *rest),
    }


def reference_linear_gate_residual(hidden, rows, weight, bias, gate, gated, index, tokens, x):
    branch = F.linear(rows, weight, bias)
    packed = PackedRows(index, tokens)
    joined, from_x = (
        reference.gate_residual(rows, branch, gate, packed) if gated else rows + branch
        for rows in (hidden, x.flatten(0, 1)[index])
    )  # fmt: skip
    return {"joined": joined, "joined in place": joined, "joined from x": from_x}


def draw_linear_scatter(draw: Draw) -> dict:
    batch, tokens, _, index = draw_kept(draw)
    width, inner = draw.choice(8, 24, 40, 72, 136), draw.choice(8, 40, 129)
    return {
        "x": draw.tensor(batch, tokens, width),
        "index": index,
        "hidden": draw.tensor(index.shape[0], width),
        "inner": draw.tensor(index.shape[0], inner),
        "weight": draw.tensor(width, inner, std=inner**-0.5),
        "bias": draw.choice(None, draw.tensor(width)),
        "gate": draw.modulation(batch, width)[2],
        "logits": draw.tensor(batch, tokens, dtype=torch.float32),
        "rescale": draw.choice("mlp", "residual", "output", "none"),
        "score_scale": draw.choice(1.0, 2.0),
    }


def linear_scatter(x, index, hidden, inner, weight, bias, gate, logits, rescale, score_scale):
    fused, rows = kernels("fused_linear", "scatter"), PackedRows(index, x.shape[1])
    call = Finish(x, rows, hidden, inner, gate, logits, Rescale(rescale, score_scale))
    return {"put": fused.linear_scatter(call, Linear(weight, bias))}


def reference_linear_scatter(x, index, hidden, inner, weight, bias, gate, logits, rescale, score_scale):
    branch = F.linear(inner, weight, bias)
    rows, how = PackedRows(index, x.shape[1]), Rescale(rescale, score_scale)
    return {"put": reference.scatter_rescale(Finish(x, rows, hidden, branch, gate, logits, how))}


PRODUCTS = {
    "linear_gate_residual": Operator(
        draw_linear_gate_residual, linear_gate_residual, reference_linear_gate_residual
    ),
    "linear_scatter": Operator(draw_linear_scatter, linear_scatter, reference_linear_scatter),
}
