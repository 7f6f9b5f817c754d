"""Blocks with every choice drawn from one seed: a case that failed is repeated with `random_case(seed)`."""

from __future__ import annotations

import random

import torch

from diffratio_kernels.testing.cases import LAYOUTS, ModBlockCase, TwoBinCase


def random_case(seed: int, dtype: torch.dtype | None = None) -> ModBlockCase:
    """A case with every choice drawn from the seed, edge cases (k = 0, k = N, N = 1, no text) included."""
    draw = random.Random(seed)
    batch, tokens = draw.choice([1, 1, 2, 2, 3, 4]), draw.choice([1, 2, 7, 16, 33, 48, 65])

    def kept():
        return draw.choice([0, 1, tokens, *(draw.randint(0, tokens) for _ in range(5))])

    text = draw.choice([None, 1, 5, 12])
    return ModBlockCase(
        seed=seed,
        batch=batch,
        tokens=tokens,
        heads=draw.choice([1, 2, 3]),
        head_dim=draw.choice([8, 16, 24, 72]),
        hidden=draw.choice([8, 40, 96]),
        text=text,
        ragged_text=text is not None and draw.random() < 0.5,
        keep=tuple(kept() for _ in range(batch)) if draw.random() < 0.5 else (kept(),),
        biases=draw.random() < 0.7,
        router_bias=draw.random() < 0.3,
        rescale=draw.choice(["mlp", "mlp", "residual", "output", "none"]),
        score_scale=draw.choice([1.0, 2.0]),
        layout=draw.choice(["contiguous", "contiguous", *LAYOUTS]),
        dtype=dtype or draw.choice([torch.float32, torch.bfloat16, torch.float16]),
    )


def random_two_bin_case(seed: int, dtype: torch.dtype | None = None) -> TwoBinCase:
    """`random_case` with a smaller bin, also empty or equal, and weights, also all 0 or 1 or beyond."""
    case, draw = random_case(seed, dtype), random.Random(f"two bins {seed}")

    def below(count):
        return draw.choice([0, count, *(draw.randint(0, count) for _ in range(4))])

    keep_small = tuple(below(k) for k in (case.full_keep if draw.random() < 0.5 else case.keep))
    anything = [0.0, 1.0, -1.5, 2.5, *(draw.random() for _ in range(6))]
    values = draw.choice([anything, anything, anything, [0.0], [1.0]])
    weight_large = tuple(draw.choice(values) for _ in range(case.batch))
    return TwoBinCase(**vars(case), keep_small=keep_small, weight_large=weight_large)
