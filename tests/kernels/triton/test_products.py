"""Products that end in the residual stream over random shapes: within the error budget, all guards on."""

from collections import Counter, defaultdict

import pytest
import torch

from tools.launchers.calls import random_call
from tools.launchers.check import check_kernels

SEEDS = 80
STEP = 20


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_products_stay_within_the_error_budget(first, device):
    for seed in range(first, first + STEP):
        check_kernels(seed, device, family="products")


def test_seeds_reach_the_edges():
    found = defaultdict(Counter)
    for seed in range(SEEDS):
        name, dtype, a = random_call(seed, family="products")
        index, joined = a["index"], name == "linear_gate_residual"
        found[name] += Counter(
            {
                dtype: 1,
                "no samples": a["gate"].shape[0] == 0,
                "no rows": index.numel() == 0 < a["gate"].shape[0],
                "one token": (a["tokens"] if joined else a["x"].shape[1]) == 1,
                "several tiles": index.numel() > 32 and a["weight"].shape[0] > 32 < a["weight"].shape[1],
                "two bins": not torch.equal(index, index.sort().values),
                "no bias": a["bias"] is None,
                "no gate": joined and not a["gated"],
                a.get("rescale"): 1,
            }
        )
    both = (
        torch.float32,
        torch.float16,
        "no samples",
        "no rows",
        "one token",
        "several tiles",
        "two bins",
        "no bias",
    )
    wanted = {"linear_gate_residual": ("no gate",), "linear_scatter": ("mlp", "residual", "output", "none")}
    assert not [(name, edge) for name in wanted for edge in both + wanted[name] if not found[name][edge]]
