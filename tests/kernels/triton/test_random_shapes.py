"""Every Triton kernel, forward and backward, over random shapes: within the error budget, all guards on."""

from collections import Counter, defaultdict

import pytest
import torch

from diffratio_kernels.ops.adaln import triton as adaln
from diffratio_kernels.testing import budget
from tools.launchers import cases
from tools.launchers.calls import random_call
from tools.launchers.check import check_kernels, same_bits
from tools.launchers.draw import HEAD_DIMS

SEEDS = 320
STEP = 20


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_launchers_stay_within_the_error_budget(first, device):
    for seed in range(first, first + STEP):
        check_kernels(seed, device)


def test_a_seed_is_a_whole_case(device):
    for seed in range(40):
        (name, dtype, arguments), (*same, again) = random_call(seed, device), random_call(seed, device)
        assert [name, dtype] == same and arguments.keys() == again.keys()
        for key, value in arguments.items():
            if isinstance(value, torch.Tensor):
                assert same_bits(value, again[key]), key
            else:
                assert value == again[key], key


def test_seeds_reach_the_edges():
    found, heads = defaultdict(Counter), set()
    for seed in range(SEEDS):
        name, _, a = random_call(seed)
        seen = found[name]
        index = a.get("index")
        by_sample = [a[key] for key in ("x", "shift", "gate", "logits") if key in a]
        seen["no samples"] += any(t.shape[0] == 0 for t in by_sample)
        seen["one token"] += a.get("tokens", a["x"].shape[1] if "x" in a else 0) == 1
        seen["no rows"] += index is not None and index.numel() == 0
        if name == "attention":
            heads.add(a["query"].shape[2])
            lengths = a["key_lengths"] or []
            seen["nothing counts"] += 0 in lengths
            seen["no keys"] += 0 in a["keys"] and max(a["keys"]) > 0
            seen["no queries"] += 0 in a["queries"] and max(a["queries"]) > 0
            seen["self"] += a["keys"] is a["queries"]
            seen["shared keys"] += a["query"].shape[1] > a["key"].shape[1] > 1
        if name == "scatter_rescale":
            seen[a["rescale"]] += 1
            seen["all kept"] += index.numel() == a["logits"].numel() > 0
            seen["two bins"] += not torch.equal(index, index.sort().values)
        if name == "select":
            seen["none of some"] += 0 in a["keep"] and a["logits"].numel() > 0
            seen["all"] += a["logits"].shape[1] in a["keep"]
            seen["two bins"] += a["keep_small"] is not None
    assert set(found) == set(cases.OPERATORS)
    rows = ("no samples", "one token", "no rows")
    wanted = {name: rows for name in ("gather_adaln", "adaln", "gate_residual", "scatter_rescale")}
    wanted["scatter_rescale"] += ("mlp", "residual", "output", "none", "all kept", "two bins")
    wanted |= {"router_logits": rows[:2], "select": ("no samples", "none of some", "all", "two bins")}
    wanted["attention"] = ("nothing counts", "no keys", "no queries", "self", "shared keys")
    missing = [(name, edge) for name, edges in wanted.items() for edge in edges if not found[name][edge]]
    assert not missing and heads == set(HEAD_DIMS)


def test_a_failure_says_how_to_repeat_it(device, monkeypatch):
    """The check fires on a result that is 1 % too large, and names the seed."""
    plain = adaln.gather_adaln

    def gather_adaln(*args, **kwargs):
        rows, normed = plain(*args, **kwargs)
        return rows, normed * 1.01

    monkeypatch.setattr(adaln, "gather_adaln", gather_adaln)
    monkeypatch.setattr(budget, "worst", {})  # the table of a run is not about this
    [seed, *_] = (
        s
        for s in range(100)
        if random_call(s)[0] == "gather_adaln" and random_call(s)[2]["index"].numel() > 0
    )
    with pytest.raises(AssertionError, match=rf"check_kernels\({seed}, '{device}'\)  # gather_adaln.*normed"):
        check_kernels(seed, device)
