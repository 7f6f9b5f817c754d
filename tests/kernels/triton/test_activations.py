"""`activation` over random shapes: within the error budget, all guards on."""

from collections import Counter

import pytest

from diffratio_kernels._checks import ACTIVATIONS
from tools.launchers.calls import random_call
from tools.launchers.check import check_kernels

SEEDS = 60
STEP = 20


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_activations_stay_within_the_error_budget(first, device):
    for seed in range(first, first + STEP):
        check_kernels(seed, device, family="activations")


def test_seeds_reach_the_edges():
    found = Counter()
    for seed in range(SEEDS):
        _, _, a = random_call(seed, family="activations")
        scored = "scored" if a["places"] is not None else "not scored"
        rows = "rows" if a["gate"].numel() else "no rows"
        found[a["kind"], "alone" if a["value"] is None else "gated", scored, rows] += 1
    for kind in ACTIVATIONS:
        for how in ("alone", "gated"):
            assert found[kind, how, "scored", "rows"] and found[kind, how, "not scored", "rows"]
    assert any(key[-1] == "no rows" for key in found)
