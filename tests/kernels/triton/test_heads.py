"""`qk_norm_rope` over random norms, tables and places: within the error budget, all guards on."""

from collections import Counter

import pytest

from tools.launchers.calls import random_call
from tools.launchers.check import check_kernels

SEEDS, STEP = 60, 12


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_heads_stay_within_the_error_budget(first, device):
    for seed in range(first, first + STEP):
        check_kernels(seed, device, "heads")


def test_seeds_reach_the_edges():
    seen, edges = Counter(), set()
    for seed in range(SEEDS):
        _, _, a = random_call(seed, family="heads")
        edges = {
            "no rows": len(a["index"]) == 0, "across": a["across_heads"] and a["norm"] != "none",
            "fewer heads": a["kv_heads"] < a["heads"], "biases": a.get("key_bias") is not None,
            "two streams": a["others"] > 0, a["norm"]: True,
        }  # fmt: skip
        if a["cos"] is not None:
            samples, _, heads, pairs = a["cos"].shape
            edges |= {
                "table of samples": samples > 1, "table of heads": heads > 1, "halves": a["halves"],
                "some turn": 2 * pairs < a["query"].shape[1] // a["heads"],
            }  # fmt: skip
        seen.update(name for name, found in edges.items() if found)
    assert all(seen[name] >= 3 for name in (*edges, "rms", "layer", "none")), seen
