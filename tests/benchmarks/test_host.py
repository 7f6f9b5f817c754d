"""python -m benchmarks.host: what it counts, and that its figures belong together."""

import pytest
import torch

from benchmarks import host


@pytest.fixture(scope="module")
def figures():
    with torch.no_grad():
        return host.measure(rounds=1)


def test_ratios_are_those_of_the_figures(figures):
    assert figures["routed / dense"] == figures["routed"] / figures["dense"]
    assert figures["calls x empty call"] == figures["dispatcher calls"] * figures["empty call"]


def test_every_layer_makes_the_same_calls(figures):
    assert figures["dispatcher calls"] == int(figures["dispatcher calls"])


def test_only_dispatcher_calls_count():
    x = torch.randn(2, 2)
    with host._Calls() as calls:
        x.add(1)
        x.size()
        x.relu()
    assert calls.count == 2
