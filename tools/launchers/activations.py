"""The same as cases.py for what an MLP has between its products."""

from __future__ import annotations

from dataclasses import replace

import torch

from diffratio_kernels import reference
from diffratio_kernels._backends import kernels
from diffratio_kernels._checks import ACTIVATIONS
from diffratio_kernels.types import Gated

from .draw import Draw, Operator, differentiate


def draw_activation(draw: Draw) -> dict:
    rows, width = draw.choice(0, 1, 5, 16, 33), draw.choice(8, 12, 40, 129, 1032)
    places = torch.randperm(2 * rows, generator=draw.generator)[:rows]
    joined = draw.tensor(rows, 2 * width, std=2.0)
    return {
        "gate": joined[:, :width],
        "value": draw.choice(None, joined[:, width:]),
        "kind": draw.choice(*ACTIVATIONS),
        "places": draw.choice(None, places),
        "scores": draw.tensor(2, rows, dtype=torch.float32),
        "score_scale": draw.choice(1.0, 2.0),
        "grad": draw.tensor(rows, width),
    }


def _given(gate, value, kind, places, scores, score_scale) -> Gated:
    return Gated(gate, value, kind, places, None if places is None else scores, score_scale)


def activation(gate, value, kind, places, scores, score_scale, grad):
    triton, given = kernels("activation", "triton"), _given(gate, value, kind, places, scores, score_scale)
    own = gate.clone(memory_format=torch.contiguous_format)
    beside = torch.zeros(gate.shape[0], gate.shape[1] + 3).to(gate)
    triton.activation(given, beside[:, 3:])
    found = triton.activation_backward(grad, given)
    return {
        "inner": triton.activation(given),
        "inner in place": triton.activation(replace(given, gate=own), own),
        "inner beside others": beside,
        **{key: t for key, t in zip(("d gate", "d value", "d scores"), found, strict=True) if t is not None},
    }


def reference_activation(gate, value, kind, places, scores, score_scale, grad):
    leaves = {"gate": gate} | ({} if value is None else {"value": value})
    leaves |= {} if places is None else {"scores": scores}

    def function(gate, value=None, scores=None):
        return {"inner": reference.activation(_given(gate, value, kind, places, scores, score_scale))}

    results = differentiate(function, leaves, [grad])
    inner = results["inner"]
    beside = torch.cat([torch.zeros_like(inner[:, :1]).expand(-1, 3), inner], dim=1)
    return results | {"inner in place": inner, "inner beside others": beside}


ACTIVATION = {"activation": Operator(draw_activation, activation, reference_activation)}
