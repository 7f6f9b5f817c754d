"""torch.compile of a routed model, whole and block by block: no graph break, no flood of recompilations."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters

from diffratio import DiffRatioConfig, apply_diffratio, disable_diffratio, remove_diffratio
from diffratio.routing.find import routed_layers


@pytest.fixture
def graphs():
    """A backend that counts what it compiles; dynamo forgets everything before and after."""

    def backend(graph, example_inputs):
        backend.compiled += 1
        return aot_eager(graph, example_inputs)

    backend.compiled = 0
    torch._dynamo.reset()
    counters.clear()
    yield backend
    torch._dynamo.reset()
    counters.clear()


def equal(a, b):
    return (a - b).abs().max() <= 1e-6 * b.abs().max()


def test_a_whole_model_compiles_to_one_graph_and_gives_the_same(tiny, graphs):
    model = tiny.route(tiny.pixart(), 0.5)
    inputs = tiny.inputs(model)
    eager = tiny.run(model, inputs)
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    for _ in range(2):
        assert equal(tiny.run(compiled, inputs), eager)
    assert graphs.compiled == 1
    assert not counters["graph_break"]


def test_a_compiled_model_follows_new_counts_disabling_and_removal(tiny, graphs):
    model = tiny.pixart(num_layers=1)
    inputs = tiny.inputs(model)
    dense = tiny.run(model, inputs)
    tiny.route(model, 0.5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    tiny.run(compiled, inputs)
    apply_diffratio(compiled, DiffRatioConfig(0.8))
    assert equal(tiny.run(compiled, inputs), tiny.run(model, inputs))
    assert not equal(tiny.run(compiled, inputs), dense)
    disable_diffratio(compiled)
    assert equal(tiny.run(compiled, inputs), dense)
    remove_diffratio(compiled)
    assert equal(tiny.run(compiled, inputs), dense)


@pytest.mark.parametrize(("kind", "grad"), [("pixart", False), ("dit", False), ("pixart", True)])
def test_blocks_compiled_one_by_one_take_every_kept_count_in_a_handful_of_graphs(tiny, graphs, kind, grad):
    """dynamo gives up at its ninth graph of one function: twelve counts must share their graphs."""
    model = tiny.make(kind)
    rows = {0: [0.1, 0.2, 0.3, 0.4], 1: [0.5, 0.6, 0.7, 0.8], 2: [0.9, 0.0, 0.2, 0.5]}
    calls = [tiny.inputs(model, t) for t in (900, 600, 300, 100)]
    configs = [DiffRatioConfig(0.0, rows, 4), DiffRatioConfig(0.3, num_regions=4, overrides={1: 1.0})]
    tiny.route(model)

    def sweep():
        results, kept = [], set()
        for config in configs:
            apply_diffratio(model, config)
            for call in calls:
                model.zero_grad()
                out = tiny.run(model, call, grad)
                if grad:
                    out.square().mean().backward()
                    out = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
                results.append(out)
                kept |= {layer.kept[layer.model.regions[0]] for layer in routed_layers(model)}
        return results, kept

    eager, kept = sweep()
    assert len(kept) == 11
    for block in model.transformer_blocks:
        block.compile(fullgraph=True, backend=graphs)
    compiled, _ = sweep()
    for i, (a, b) in enumerate(zip(compiled, eager, strict=True)):
        assert a.shape == b.shape, i
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), i
    # One with a fixed count for each stride of x, one for any count, one for a bypass, and slack for one.
    assert graphs.compiled <= 5
    assert not counters["graph_break"]
    after = graphs.compiled
    sweep()
    assert graphs.compiled == after


def test_a_compiled_model_with_regions_breaks_its_graph_once_to_read_the_timestep(tiny, graphs):
    model = tiny.route(tiny.dit(num_layers=1), num_regions=2, overrides={0: [0.2, 0.7]})
    calls = [tiny.inputs(model, t) for t in (900, 100, 900)]
    eager = [tiny.run(model, call) for call in calls]
    compiled = torch.compile(model, backend="eager")
    assert all(equal(tiny.run(compiled, c), e) for c, e in zip(calls, eager, strict=True))
