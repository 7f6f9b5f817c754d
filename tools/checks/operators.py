"""One seed of one public operator and its gradients against the reference: any backend, any device."""

from __future__ import annotations

import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.budget import check_budget, longest_sum, shake
from diffratio_kernels.testing.cases import cast, on_device

from ..launchers.calls import ALL
from ..launchers.check import EXACT, same_bits
from ..launchers.draw import Draw, differentiate
from ..launchers.two_bin import bins_of, row_by_row


def _route(backend, x, router_weight, router_bias, grad_logits):
    def function(x, router_weight):
        logits = dk.route(x, router_weight, 0, router_bias=router_bias, backend=backend)[2]
        return {"logits": logits}

    return differentiate(function, {"x": x, "router_weight": router_weight}, [grad_logits])


def _gather_adaln(backend, x, index, shift, scale, eps, norm, groups, grad_rows, grad_normed):
    def function(x, shift, scale):
        results = dk.gather_adaln(x, index, shift, scale, eps, norm=norm, groups=groups, backend=backend)
        return dict(zip(("rows", "normed"), results, strict=True))

    return differentiate(function, {"x": x, "shift": shift, "scale": scale}, [grad_rows, grad_normed])


def _adaln(backend, rows, index, tokens, shift, scale, eps, norm, groups, grad_normed):
    def function(rows, shift, scale):
        options = {"norm": norm, "groups": groups, "backend": backend}
        return {"normed": dk.adaln(rows, index, tokens, shift, scale, eps, **options)}

    return differentiate(function, {"rows": rows, "shift": shift, "scale": scale}, [grad_normed])


def _gate_residual(
    backend, hidden, branch, gate, index, tokens, groups, norm, norm_weight, norm_bias, grad_out
):  # fmt: skip
    def function(branch, gate, **vectors):
        options = {"groups": groups, "norm": norm, "norm_eps": 1e-5, "backend": backend}
        return {"out": dk.gate_residual(hidden, branch, gate, index, tokens, **vectors, **options)}

    leaves = {"branch": branch, "gate": gate, "norm_weight": norm_weight, "norm_bias": norm_bias}
    return differentiate(function, leaves, [grad_out])


def _scatter_rescale(
    backend, x, index, hidden, branch, gate, logits, rescale, score_scale, groups, norm, norm_weight,
    norm_bias, grad_out,
):  # fmt: skip
    finish = {"rescale": rescale, "score_scale": score_scale, "backend": backend}
    finish |= {"groups": groups, "norm": norm, "norm_eps": 1e-5}
    vectors = {"norm_weight": norm_weight, "norm_bias": norm_bias}

    def function(x, hidden, branch, gate, logits, **vectors):
        return {"out": dk.scatter_rescale(x, index, hidden, branch, gate, logits, **vectors, **finish)}

    leaves = {"x": x, "hidden": hidden, "branch": branch, "gate": gate, "logits": logits, **vectors}
    in_place = x.clone(memory_format=torch.contiguous_format)
    dk.scatter_rescale_(in_place, index, hidden, branch, gate, logits, **vectors, **finish)
    return differentiate(function, leaves, [grad_out]) | {"out in place": in_place}


def _two_bin_gelu(backend, keep_large, keep_small, weight_large, pre, grad):
    """With one row to a sample: the gradient of a weight is one number, that of all rows' has statistics."""
    bins = row_by_row(weight_large, keep_large, keep_small)
    cu_seqlens = bins.cu_seqlens_large, bins.cu_seqlens_small

    def function(pre, weights):
        return {"inner": dk.two_bin_gelu(pre, weights, *cu_seqlens, bins.rows, backend=backend)}

    return differentiate(function, {"pre": pre, "weights": bins.weight_large}, [grad])


def _two_bin_blend(
    backend, keep_large, keep_small, weight_large, x, index, hidden, branch, gate, logits, rescale,
    score_scale, grad_out,
):  # fmt: skip
    bins = bins_of(weight_large, keep_large, keep_small)
    flat = weight_large, bins.cu_seqlens_large, bins.cu_seqlens_small
    finish = {"rescale": rescale, "score_scale": score_scale, "backend": backend}

    def function(x, hidden, branch, gate, logits):
        return {"out": dk.two_bin_blend(x, index, hidden, branch, gate, logits, *flat, **finish)}

    leaves = {"x": x, "hidden": hidden, "branch": branch, "gate": gate, "logits": logits}
    return differentiate(function, leaves, [grad_out])


def _activation(backend, gate, value, kind, places, scores, score_scale, grad):
    leaves = {"gate": gate} | ({} if value is None else {"value": value})
    leaves |= {} if places is None else {"scores": scores}

    def function(gate, value=None, scores=None):
        how = {"kind": kind, "score_scale": score_scale, "backend": backend}
        return {"inner": dk.activation(gate, value, places, scores, **how)}

    return differentiate(function, leaves, [grad])


OPERATOR_CHECKS = {
    "route": ("router_logits", _route),
    "gather_adaln": ("gather_adaln", _gather_adaln),
    "adaln": ("adaln", _adaln),
    "gate_residual": ("gate_residual", _gate_residual),
    "scatter_rescale": ("scatter_rescale", _scatter_rescale),
    "activation": ("activation", _activation),
    "two_bin_gelu": ("two_bin_gelu", _two_bin_gelu),
    "two_bin_blend": ("two_bin_blend", _two_bin_blend),
}
"""Operator -> the name of its random arguments, and the function that runs it on them."""


def check_operator(
    op: str, seed: int, dtype: torch.dtype, backend: str = "auto", device: str = "cpu"
) -> None:
    """Assert that an operator and its gradients, on arguments drawn from the seed, stay within the budget.

    The gradient of the logits is one sum per kept row: it is held to the budget from 8 of them up, fewer have
    no statistics.
    """
    name, run = OPERATOR_CHECKS[op]
    drawn, reference = ALL[name].draw(Draw(seed, dtype)), ALL[name].reference
    actual = on_device(run(backend, **on_device(drawn, device)), "cpu")
    peer, gold = reference(**drawn), reference(**cast(drawn, torch.float64))
    assert actual.keys() <= gold.keys(), (actual.keys(), gold.keys())
    label = f"{op} {backend} {str(dtype).removeprefix('torch.')}"
    for key, result in actual.items():
        if key in EXACT:
            assert same_bits(result, peer[key]), f"{label}: {key}, seed {seed}"
            continue
        if key == "d logits" and drawn["index"].numel() < 8:
            continue
        shaken = [
            reference(**shake(drawn, peer[key].dtype, seed + j))[key]
            for j in range(4 if key.startswith("d ") or key == "logits" else 0)
        ]
        try:
            check_budget(
                f"{label}: {key}", result, peer[key], gold[key], shaken=shaken, terms=longest_sum(drawn)
            )
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
