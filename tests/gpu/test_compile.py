"""torch.compile with inductor, also with its CUDA graphs: one graph, within the error budget."""

import pytest
import torch
from torch._dynamo.utils import counters

from diffratio_kernels import mod_block, reference, route
from diffratio_kernels.testing.budget import check_budget, gradients, longest_sum
from diffratio_kernels.testing.cases import ModBlockCase, cast, on_device
from tools.launchers.calls import kernel_device

OPTIONS = {"heads": 2, "head_dim": 72, "hidden": 136, "dtype": torch.bfloat16}
SHAPES = {
    "text": ModBlockCase(seed=0, tokens=64, keep=(45,), **OPTIONS),
    "ragged text": ModBlockCase(seed=1, tokens=100, keep=(31,), ragged_text=True, **OPTIONS),
    "no text": ModBlockCase(seed=2, tokens=33, keep=(33,), text=None, router_bias=True, **OPTIONS),
    "counts of their own": ModBlockCase(seed=3, tokens=64, keep=(64, 20), ragged_text=True, **OPTIONS),
    "one sample": ModBlockCase(seed=4, batch=1, tokens=256, keep=(77,), rescale="residual", **OPTIONS),
    "samples without tokens": ModBlockCase(seed=5, batch=3, tokens=48, keep=(0, 48, 13), **OPTIONS),
}
MODES = {"default": {}, "reduce-overhead": {"mode": "reduce-overhead"}, "aot_eager": {"backend": "aot_eager"}}
COMPILED = [
    pytest.param(shape, mode, marks=pytest.mark.gpu)
    for mode in ("default", "reduce-overhead")
    for shape in SHAPES
] + [("ragged text", "aot_eager"), ("samples without tokens", "aot_eager")]  # which need no GPU


def around(block):
    """Something before and after the block, so that the graph holds more than one call."""
    return lambda x, **arguments: block(torch.tanh(x), **arguments) + x


@pytest.mark.parametrize(("shape", "mode"), COMPILED)
def test_one_graph_within_the_error_budget(shape, mode):
    case = SHAPES[shape]
    arguments = on_device(case.arguments(), kernel_device())
    router = arguments["router_weight"], arguments["keep"]
    selection = route(torch.tanh(arguments["x"]), *router, router_bias=arguments["router_bias"])
    arguments["index"] = selection[0]
    eager, full = around(reference.mod_block), arguments | {"keep": case.full_keep}
    peer, peer_grads = gradients(eager, full, seed=0)
    gold, gold_grads = gradients(eager, cast(full, torch.float64), seed=0)

    terms = longest_sum(arguments)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(around(mod_block), fullgraph=True, **MODES[mode])
    for _ in range(3):  # the first run warms up, the second captures, the third replays
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            check_budget("compiled: inference", compiled(**arguments), peer, gold, terms=terms)
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        out, grads = gradients(compiled, arguments, seed=0)
        check_budget("compiled: training", out, peer, gold, terms=terms)
        for key in ("x", "modulation", "qkv_weight", "out_weight", "fc1_weight", "fc2_weight"):
            check_budget(
                f"compiled: d {key}", grads[key], peer_grads[key], gold_grads[key], factor=3, terms=terms
            )
    assert not counters["graph_break"] and not counters["inductor"]["cudagraph_skips"]
    torch._dynamo.reset()
