"""Calls of the operators that work on whole rows: adaLN, gate, scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffratio_kernels import reference
from diffratio_kernels._backends import kernels
from diffratio_kernels.types import Finish, PackedRows, Rescale, RowNorm

from .draw import Draw, Operator, differentiate, draw_kept


def bundle_of(norm: str, weight: Tensor | None, bias: Tensor | None) -> RowNorm | None:
    return None if norm == "none" else RowNorm(norm, weight, bias, 1e-5)


def gradients_of(names: Sequence[str], grads: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Gradients by the names of what they are of, but those that are None."""
    return {f"d {name}": t for name, t in zip(names, grads, strict=True) if t is not None}


def draw_gather_adaln(draw: Draw) -> dict:
    batch, tokens, width, index = draw_kept(draw)
    groups, owners = draw.groups(batch, tokens)
    shift, scale, _ = draw.modulation(owners, width)
    return {
        "x": draw.tensor(batch, tokens, width),
        "index": index,
        "shift": shift,
        "scale": scale,
        "eps": draw.choice(1e-6, 1e-5),
        "norm": draw.choice("layer", "layer", "rms"),
        "groups": groups,
        "grad_rows": draw.choice(None, draw.tensor(index.shape[0], width)),
        "grad_normed": draw.tensor(index.shape[0], width),
    }


def gather_adaln(x, index, shift, scale, eps, norm, groups, grad_rows, grad_normed):
    batch, tokens, _ = x.shape
    triton, packed = kernels("adaln", "triton"), PackedRows(index, tokens, groups=groups)
    rows, normed = triton.gather_adaln(x, packed, shift, scale, eps, norm)
    grads = triton.adaln_backward(rows, packed, scale, eps, grad_rows, grad_normed, batch * tokens, norm)
    return {
        "rows": rows,
        "normed": normed,
        "normed only": triton.gather_adaln(x, packed, shift, scale, eps, norm, keep_rows=False)[1],
        "d x": grads[0].view(x.shape),
        **dict(zip(("d shift", "d scale"), grads[1:], strict=True)),
    }


def reference_gather_adaln(x, index, shift, scale, eps, norm, groups, grad_rows, grad_normed):
    def function(x, shift, scale):
        packed = PackedRows(index, x.shape[1], groups=groups)
        rows, normed = reference.gather_adaln(x, packed, shift, scale, eps, norm)
        return {"rows": rows, "normed": normed}

    leaves = {"x": x, "shift": shift, "scale": scale}
    results = differentiate(function, leaves, [grad_rows, grad_normed])
    return results | {"normed only": results["normed"]}


def draw_adaln(draw: Draw) -> dict:
    batch, tokens, width, index = draw_kept(draw)
    groups, owners = draw.groups(batch, tokens)
    shift, scale, _ = draw.modulation(owners, width)
    return {
        "rows": draw.tensor(index.shape[0], width),
        "index": index,
        "tokens": tokens,
        "shift": shift,
        "scale": scale,
        "eps": 1e-6,
        "norm": draw.choice("layer", "rms"),
        "groups": groups,
        "grad_normed": draw.tensor(index.shape[0], width),
    }


def adaln(rows, index, tokens, shift, scale, eps, norm, groups, grad_normed):
    triton, packed = kernels("adaln", "triton"), PackedRows(index, tokens, groups=groups)
    grads = triton.adaln_backward(rows, packed, scale, eps, None, grad_normed, None, norm)
    return {
        "normed": triton.adaln(rows, packed, shift, scale, eps, norm),
        **dict(zip(("d rows", "d shift", "d scale"), grads, strict=True)),
    }


def reference_adaln(rows, index, tokens, shift, scale, eps, norm, groups, grad_normed):
    packed = PackedRows(index, tokens, groups=groups)

    def function(rows, shift, scale):
        return {"normed": reference.adaln(rows, packed, shift, scale, eps, norm)}

    return differentiate(function, {"rows": rows, "shift": shift, "scale": scale}, [grad_normed])


def draw_gate_residual(draw: Draw) -> dict:
    batch, tokens, width, index = draw_kept(draw)
    hidden, branch, grad_out = (draw.tensor(index.shape[0], width) for _ in range(3))
    groups, owners = draw.groups(batch, tokens)
    gate = draw.modulation(owners, width)[2]
    return {
        "hidden": hidden, "branch": branch, "gate": gate, "index": index, "tokens": tokens, "groups": groups,
        **draw.branch_norm(width), "grad_out": grad_out,
    }  # fmt: skip


def gate_residual(hidden, branch, gate, index, tokens, groups, norm, norm_weight, norm_bias, grad_out):
    copy = hidden.clone(memory_format=torch.contiguous_format)
    triton, packed = kernels("gate_residual", "triton"), PackedRows(index, tokens, groups=groups)
    own = bundle_of(norm, norm_weight, norm_bias)
    grads = triton.gate_residual_backward(grad_out, branch, gate, packed, own)
    return {
        "out": triton.gate_residual(hidden, branch, gate, packed, own),
        "out in place": triton.gate_residual(copy, branch, gate, packed, own, in_place=True),
        **gradients_of(("branch", "gate", "norm_weight", "norm_bias"), grads),
    }


def reference_gate_residual(
    hidden, branch, gate, index, tokens, groups, norm, norm_weight, norm_bias, grad_out
):  # fmt: skip
    packed = PackedRows(index, tokens, groups=groups)

    def function(branch, gate, norm_weight=None, norm_bias=None):
        own = bundle_of(norm, norm_weight, norm_bias)
        return {"out": reference.gate_residual(hidden, branch, gate, packed, own)}

    leaves = {"branch": branch, "gate": gate, "norm_weight": norm_weight, "norm_bias": norm_bias}
    results = differentiate(function, leaves, [grad_out])
    return results | {"out in place": results["out"]}


def draw_scatter_rescale(draw: Draw) -> dict:
    batch, tokens, width, index = draw_kept(draw)
    groups, owners = draw.groups(batch, tokens)
    return {
        "x": draw.tensor(batch, tokens, width),
        "index": index,
        "hidden": draw.tensor(index.shape[0], width),
        "branch": draw.tensor(index.shape[0], width),
        "gate": draw.modulation(owners, width)[2],
        "logits": draw.tensor(batch, tokens, dtype=torch.float32),
        "rescale": draw.choice("mlp", "residual", "output", "none"),
        "score_scale": draw.choice(1.0, 2.0),
        "groups": groups,
        **draw.branch_norm(width),
        "grad_out": draw.tensor(batch, tokens, width),
    }


def scatter_rescale(
    x, index, hidden, branch, gate, logits, rescale, score_scale, groups, norm, norm_weight, norm_bias,
    grad_out,
):  # fmt: skip
    triton, rows = kernels("scatter_rescale", "triton"), PackedRows(index, x.shape[1], groups=groups)
    how, own = Rescale(rescale, score_scale), bundle_of(norm, norm_weight, norm_bias)
    call = Finish(x, rows, hidden, branch, gate, logits, how, own)
    in_place = x.clone(memory_format=torch.contiguous_format)
    triton.scatter_rescale_(replace(call, x=in_place))
    grads = triton.scatter_rescale_backward(grad_out, call)
    return {
        "out": triton.scatter_rescale(call),
        "out in place": in_place,
        **gradients_of(("x", "hidden", "branch", "gate", "logits", "norm_weight", "norm_bias"), grads),
    }


def reference_scatter_rescale(
    x, index, hidden, branch, gate, logits, rescale, score_scale, groups, norm, norm_weight, norm_bias,
    grad_out,
):  # fmt: skip
    rows, how = PackedRows(index, x.shape[1], groups=groups), Rescale(rescale, score_scale)

    def function(x, hidden, branch, gate, logits, norm_weight=None, norm_bias=None):
        own = bundle_of(norm, norm_weight, norm_bias)
        return {"out": reference.scatter_rescale(Finish(x, rows, hidden, branch, gate, logits, how, own))}

    leaves = {"x": x, "hidden": hidden, "branch": branch, "gate": gate, "logits": logits}
    leaves |= {"norm_weight": norm_weight, "norm_bias": norm_bias}
    results = differentiate(function, leaves, [grad_out])
    return results | {"out in place": results["out"]}


ADALN = {
    "gather_adaln": Operator(draw_gather_adaln, gather_adaln, reference_gather_adaln),
    "adaln": Operator(draw_adaln, adaln, reference_adaln),
}
GATE = {"gate_residual": Operator(draw_gate_residual, gate_residual, reference_gate_residual)}
SCATTER = {"scatter_rescale": Operator(draw_scatter_rescale, scatter_rescale, reference_scatter_rescale)}
