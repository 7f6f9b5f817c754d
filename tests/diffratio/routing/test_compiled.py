"""torch.compile and torch.export of routed models: how many graphs, and whose hooks they obey."""

import copy

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio

RATIOS = [0.2, 0.4, 0.6, 0.8]


@pytest.fixture
def graphs():
    """A backend that counts its graphs; dynamo forgets everything before and after."""

    def backend(graph, example_inputs):
        backend.compiled += 1
        return graph.forward

    backend.compiled = 0
    torch._dynamo.reset()
    yield backend
    torch._dynamo.reset()


def call(tiny, model, batch=2, size=16, timestep=500):
    inputs = tiny.inputs(getattr(model, "_orig_mod", model), timestep, batch)
    inputs["hidden_states"] = torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


def served(tiny, model, graphs, sizes, configs=(None,)):
    """How many graphs serve all sizes and kept counts; every output is that of the model itself."""
    first, compiled = graphs.compiled, torch.compile(model, fullgraph=True, backend=graphs)
    for config in configs:
        if config is not None:
            apply_diffratio(model, config)
        for batch, size in sizes:
            expected = call(tiny, model, batch, size)
            torch.testing.assert_close(call(tiny, compiled, batch, size), expected, rtol=1e-5, atol=1e-5)
    return graphs.compiled - first


def test_sizes_cost_no_more_graphs_than_they_cost_the_dense_model(tiny, graphs):
    dense, sizes = tiny.dit(num_layers=1), [(2, 16), (1, 16), (3, 16), (5, 24)]
    routed = tiny.route(copy.deepcopy(dense), 0.3)
    # 64 and 144 tokens are two kept counts.
    assert served(tiny, routed, graphs, sizes) <= served(tiny, dense, graphs, sizes) + 1


def test_a_kept_count_costs_at_most_a_graph(tiny, graphs):
    routed = tiny.route(tiny.dit(num_layers=1), 0.3)
    configs = [DiffRatioConfig(compression) for compression in (0.3, 0.5, 0.7, 1.0)]
    assert served(tiny, routed, graphs, [(2, 16), (3, 16)], configs) <= 1 + len(configs)


@pytest.mark.parametrize(("kind", "how"), [("pixart", "torch.compile"), ("dit", "compile")])
def test_blocks_compiled_one_by_one_share_the_graphs_of_all_regions(tiny, graphs, kind, how):
    model = tiny.make(kind, num_layers=2)
    tiny.route(model, 0.0, num_regions=4, overrides={0: RATIOS, 1: RATIOS[::-1]})
    eager = copy.deepcopy(model)
    for place, block in enumerate(model.transformer_blocks):
        if how == "compile":
            block.compile(fullgraph=True, backend=graphs)
        else:
            model.transformer_blocks[place] = torch.compile(block, fullgraph=True, backend=graphs)
    for batch in (2, 3):
        for timestep in (100, 400, 600, 900, 100):
            expected = call(tiny, eager, batch, timestep=timestep)
            output = call(tiny, model, batch, timestep=timestep)
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert graphs.compiled <= 6  # any count and one count, for each stride of x, with a batch that moves


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=str)
def test_a_compiled_block_takes_batches_that_mix_regions(tiny, graphs, order):
    model = tiny.make("pixart", num_layers=1)
    tiny.route(model, 0.0, num_regions=2, overrides={0: [0.5, 0.2]})
    eager = copy.deepcopy(model)
    model.transformer_blocks[0].compile(fullgraph=True, backend=graphs)
    mixes = [10, 10], [10, 900], [900, 10]
    for timestep in (mixes[n] for n in order):
        expected = call(tiny, eager, timestep=timestep)
        torch.testing.assert_close(call(tiny, model, timestep=timestep), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["attn1.to_q", "ff", "ff.net.0"])
def test_a_hook_between_apply_and_compile_is_obeyed(tiny, graphs, name):
    model = tiny.route(tiny.pixart(num_layers=1), 0.5)
    plain = call(tiny, model)
    module = model.transformer_blocks[0].get_submodule(name)
    module.register_forward_hook(lambda module, args, output: 3 * output)
    compiled = torch.compile(model, backend=graphs)
    output = call(tiny, compiled)
    torch.testing.assert_close(output, call(tiny, model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output, plain)


@pytest.mark.parametrize("kind", ["pixart", "dit"])
def test_an_exported_model_takes_any_batch(tiny, kind):
    model = tiny.route(tiny.make(kind, num_layers=1), 0.5)
    inputs, batch = tiny.inputs(model, batch=3), torch.export.Dim("batch", min=2, max=64)
    tensors = {name: value for name, value in inputs.items() if torch.is_tensor(value)}
    others = {name: value for name, value in inputs.items() if not torch.is_tensor(value)}
    shapes = {name: {0: batch} for name in tensors}

    class Exported(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tensors):
            return self.model(**tensors, **others, return_dict=False)[0]

    with torch.no_grad():
        program = torch.export.export(Exported(), (tensors,), dynamic_shapes=(shapes,)).module()
        for count in (3, 2, 7):
            inputs = {k: v for k, v in tiny.inputs(model, batch=count).items() if k in tensors}
            torch.testing.assert_close(
                program(inputs), model(**inputs, **others).sample, rtol=1e-5, atol=1e-5
            )
