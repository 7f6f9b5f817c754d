"""One seed of one public operator and its gradients against the reference: any implementation, any device."""

from __future__ import annotations

import torch

from .. import ops
from .budget import check_budget, longest_sum, shake
from .inputs import cast, on_device
from .triton_calls import ALL
from .triton_cases import Draw, differentiate
from .triton_check import EXACT, same_bits
from .triton_two_bin import offsets, row_by_row


def _route(implementation, x, router_weight, router_bias, grad_logits):
    def function(x, router_weight):
        logits = ops.route(x, router_weight, 0, router_bias=router_bias, implementation=implementation)[2]
        return {"logits": logits}

    return differentiate(function, {"x": x, "router_weight": router_weight}, [grad_logits])


def _gather_adaln(implementation, x, index, shift, scale, eps, grad_rows, grad_normed):
    def function(x, shift, scale):
        results = ops.gather_adaln(x, index, shift, scale, eps, implementation=implementation)
        return dict(zip(("rows", "normed"), results, strict=True))

    return differentiate(function, {"x": x, "shift": shift, "scale": scale}, [grad_rows, grad_normed])


def _adaln(implementation, rows, index, tokens, shift, scale, eps, grad_normed):
    def function(rows, shift, scale):
        return {"normed": ops.adaln(rows, index, tokens, shift, scale, eps, implementation=implementation)}

    return differentiate(function, {"rows": rows, "shift": shift, "scale": scale}, [grad_normed])


def _gate_residual(implementation, hidden, branch, gate, index, tokens, grad_out):
    def function(branch, gate):
        out = ops.gate_residual(hidden, branch, gate, index, tokens, implementation=implementation)
        return {"out": out}

    return differentiate(function, {"branch": branch, "gate": gate}, [grad_out])


def _scatter_rescale(
    implementation, x, index, hidden, branch, gate, logits, rescale, score_scale, grad_out, **_
):  # fmt: skip
    finish = {"rescale": rescale, "score_scale": score_scale, "implementation": implementation}

    def function(x, hidden, branch, gate, logits):
        return {"out": ops.scatter_rescale(x, index, hidden, branch, gate, logits, **finish)}

    leaves = {"x": x, "hidden": hidden, "branch": branch, "gate": gate, "logits": logits}
    in_place = x.clone(memory_format=torch.contiguous_format)
    ops.scatter_rescale_(in_place, index, hidden, branch, gate, logits, **finish)
    return differentiate(function, leaves, [grad_out]) | {"out in place": in_place}


def _two_bin_gelu(implementation, keep_large, keep_small, weight_large, pre, grad):
    """With one row to a sample: the gradient of a weight is one number, that of all rows' has statistics."""
    weights, *both = row_by_row(weight_large, keep_large, keep_small)

    def function(pre, weights):
        return {"inner": ops.two_bin_gelu(pre, weights, *both, len(weights), implementation=implementation)}

    return differentiate(function, {"pre": pre, "weights": weights}, [grad])


def _two_bin_blend(
    implementation, keep_large, keep_small, weight_large, x, index, hidden, branch, gate, logits, rescale,
    score_scale, grad_out,
):  # fmt: skip
    bins = weight_large, *offsets(keep_large, keep_small, x.device)
    finish = {"rescale": rescale, "score_scale": score_scale, "implementation": implementation}

    def function(x, hidden, branch, gate, logits):
        return {"out": ops.two_bin_blend(x, index, hidden, branch, gate, logits, *bins, **finish)}

    leaves = {"x": x, "hidden": hidden, "branch": branch, "gate": gate, "logits": logits}
    return differentiate(function, leaves, [grad_out])


OPERATOR_CHECKS = {
    "route": ("router_logits", _route),
    "gather_adaln": ("gather_adaln", _gather_adaln),
    "adaln": ("adaln", _adaln),
    "gate_residual": ("gate_residual", _gate_residual),
    "scatter_rescale": ("scatter_rescale", _scatter_rescale),
    "two_bin_gelu": ("two_bin_gelu", _two_bin_gelu),
    "two_bin_blend": ("two_bin_blend", _two_bin_blend),
}
"""Operator -> the name of its random arguments, and the function that runs it on them."""


def check_operator(
    op: str, seed: int, dtype: torch.dtype, implementation: str = "auto", device: str = "cpu"
) -> None:
    """Assert that an operator and its gradients, on arguments drawn from the seed, stay within the budget.

    The gradient of the logits is one sum per kept row: it is held to the budget from 8 of them up, fewer have
    no statistics.
    """
    name, run = OPERATOR_CHECKS[op]
    drawn, reference = ALL[name].draw(Draw(seed, dtype)), ALL[name].reference
    actual = on_device(run(implementation, **on_device(drawn, device)), "cpu")
    peer, gold = reference(**drawn), reference(**cast(drawn, torch.float64))
    assert actual.keys() <= gold.keys(), (actual.keys(), gold.keys())
    label = f"{op} {implementation} {str(dtype).removeprefix('torch.')}"
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
