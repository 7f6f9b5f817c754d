"""benchmarks.launches: blocks go where those on a GPU do, and nothing is launched."""

import pytest
import torch

from benchmarks import launches
from diffratio_kernels import _backends, _triton
from diffratio_kernels.ops import cuda


@pytest.fixture(scope="module")
def figures():
    with torch.no_grad():
        return launches.measure(rounds=1)


def test_every_block_launches_and_takes_longer_than_nothing(figures):
    assert figures.pop("nothing")["launches"] == 0
    assert all(one["launches"] >= 9 and one["empty calls"] > 1 for one in figures.values())


def test_auto_takes_both_kinds_of_kernels_and_torchs_products():
    with torch.no_grad(), launches.recorded() as recorder:
        before = recorder.count
        launches.calls()["mod_block"]()
        names = set(vars(recorder))
    assert {"router_logits", "topk_select", "gather_adaln", "gate_residual", "scatter_rescale"} <= names
    assert recorder.count - before > len(names & {"linear"}) + 5


def test_nothing_stays_recorded():
    kept = _backends.unavailable_reason, cuda.operators, torch.addmm
    with launches.recorded():
        pass
    assert kept == (_backends.unavailable_reason, cuda.operators, torch.addmm) and not _triton.stand_ins
