"""Router scores that break top-k backends, and the selection that is right for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

INF, NAN = math.inf, math.nan


def score_matrices(tokens: int) -> dict[str, Tensor]:
    """Name -> scores [2, N] fp32: ties, signed zeros, infinities, NaN, denormals, saturation, order."""
    generator = torch.Generator().manual_seed(tokens)
    random = torch.randn(2, tokens, generator=generator)
    draw = torch.rand(2, tokens, generator=generator)

    def mixed(*values: float) -> Tensor:
        return torch.tensor(values)[(draw * len(values)).long().clamp(max=len(values) - 1)]

    def some(value: float) -> Tensor:
        return torch.where(draw < 0.3, torch.tensor(value), random)

    one_nan = random.clone()
    one_nan[:, tokens // 2] = NAN
    return {
        "random": random,
        "bf16 ties": random.bfloat16().float(),
        "all equal": torch.full((2, tokens), 0.5),
        "two values": mixed(1.0, 2.0),
        "signed zeros": mixed(0.0, -0.0),
        "zeros and tiny": mixed(0.0, -0.0, 1e-45, -1e-45),
        "some +inf": some(INF),
        "some -inf": some(-INF),
        "both inf": mixed(INF, -INF),
        "one nan": one_nan,
        "some nan": some(NAN),
        "all nan": torch.full((2, tokens), NAN),
        "nan and -inf": mixed(NAN, -INF),
        "negative nan": torch.where(draw < 0.3, torch.tensor(-NAN), random),
        "everything": mixed(NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0),
        "denormal": random * 1e-40,
        "saturated": random * 1e30,
        "ascending": random.sort(1).values,
        "descending": random.sort(1, descending=True).values,
        "large steps": (random * 3).round() * 1e8,
    }


def expected_selection(scores: list[float], keep: int) -> list[int]:
    """Plain Python: larger first, -0 equals +0, NaN below -inf, ties to the lowest index; ascending."""
    order = sorted(
        range(len(scores)),
        key=lambda i: (scores[i] != scores[i], -scores[i] if scores[i] == scores[i] else 0, i),
    )
    return sorted(order[:keep])


def routed_to(scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """x [B, N, D] and router_weight [D] whose logits are exactly `scores`."""
    x = torch.zeros(*scores.shape, width, dtype=scores.dtype)
    x[..., 0] = scores
    weight = torch.zeros(width, dtype=scores.dtype)
    weight[0] = 1
    return x, weight
