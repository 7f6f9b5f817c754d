"""What a routed block takes, against blocks that take what is known."""

import time
from functools import partial

import pytest
import torch
from torch import nn

from diffratio import disable_diffratio
from diffratio.evaluation import layers
from diffratio.evaluation.cost import compare
from diffratio.evaluation.layers import layer_costs
from diffratio.evaluation.memory import peak_bytes
from diffratio.routing.find import routed_blocks


class Slow(nn.Module):
    """Sleeps, and holds so many megabytes at once, in two parts of which one is let go."""

    def __init__(self, seconds, megabytes):
        super().__init__()
        self.seconds, self.megabytes, self._diffratio = seconds, megabytes, True
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        time.sleep(self.seconds)
        held = torch.empty(int(self.megabytes * 250_000) // 2)
        torch.empty(len(held)).add_(held.numel())
        return x


def test_each_layer_has_its_own_time_and_peak():
    model = nn.Sequential(Slow(0.0, 1.0), Slow(0.05, 8.0), Slow(0.1, 2.0))
    factors = {"one": 1.0, "half": 0.5}

    def prepare(factor):
        for block, (seconds, megabytes) in zip(model, ((0.0, 1.0), (0.05, 8.0), (0.1, 2.0)), strict=True):
            block.seconds, block.megabytes = factor * seconds, factor * megabytes

    settings = {name: lambda f=factor: prepare(f) for name, factor in factors.items()}
    costs = layer_costs(model, lambda: model(torch.zeros(3)), settings, rounds=1, progress=False)
    for name, factor in factors.items():
        assert costs[name]["peak_megabytes"] == pytest.approx([factor, 8 * factor, 2 * factor], rel=0.01)
        times = costs[name]["milliseconds"]
        assert times[1] >= 50 * factor and times[2] >= 100 * factor > times[0]


def test_runs_of_a_block_are_averaged_and_no_hook_stays(monkeypatch):
    model, clock = nn.Sequential(Slow(0.0, 1.0)), [0.0]
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock[-1] + seconds))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[-1])

    def call():
        for both in (1.0, 3.0):
            model[0].seconds = model[0].megabytes = both
            model(torch.zeros(3))

    costs = layer_costs(model, call, {"only": lambda: None}, rounds=1, progress=False)
    assert costs["only"]["peak_megabytes"] == pytest.approx([2.0], rel=0.01)
    assert costs["only"]["milliseconds"] == [2000.0]
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


@pytest.mark.parametrize("kind", ["pixart", "dit"])
def test_a_block_in_its_model_takes_what_it_takes_alone(tiny, kind):
    model = tiny.route(tiny.make(kind), 0.5)
    inputs, alone = tiny.inputs(model), {}
    hook = routed_blocks(model)[0].register_forward_pre_hook(
        lambda _, args, kwargs: alone.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    tiny.run(model, inputs)
    hook.remove()
    how = {"repeats": 1, "description": "", "progress": False, "layers": True}
    found = compare(model, lambda: tiny.run(model, inputs), **how)
    dense, sparse = (found[name]["layers"]["peak_megabytes"] for name in ("dense", "sparse"))
    assert len(dense) == len(sparse) == tiny.layers and all(b < a for a, b in zip(dense, sparse, strict=True))
    with torch.inference_mode():
        disable_diffratio(model)
        block = routed_blocks(model)[0]
        one = peak_bytes(lambda: block(*alone["args"], **alone["kwargs"])) / 1e6
    assert dense[0] == pytest.approx(one, rel=0.02)


class FakeGpu:
    """As much of torch.cuda as is called: its clock is in milliseconds, its memory in bytes."""

    def __init__(self):
        self.clock = self.resident = self.peak = 0

    def install(self, monkeypatch):
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = gpu.clock

            def elapsed_time(self, end):
                assert gpu.waited
                return end.at - self.at

        def synchronize():
            gpu.waited = True

        def reset():
            gpu.peak = gpu.resident

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: gpu.resident)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: gpu.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)


def test_on_a_gpu_events_and_the_allocators_peak_count(monkeypatch):
    gpu = FakeGpu()
    gpu.install(monkeypatch)

    class Block(nn.Module):
        def __init__(self, milliseconds, peak, kept):
            super().__init__()
            self.takes = milliseconds, peak, kept

        def forward(self, x):
            milliseconds, peak, kept = self.takes
            gpu.waited = False
            gpu.clock += milliseconds
            gpu.peak = max(gpu.peak, gpu.resident + peak)
            gpu.resident += kept
            return x

    model = nn.Sequential(Block(5, 700, 300), Block(9, 400, 100))
    call = partial(model, torch.zeros(1))
    assert layers._seconds(list(model), call, "cuda") == pytest.approx([0.005, 0.009])
    assert layers._peaks(list(model), call, "cuda") == [700, 400]
