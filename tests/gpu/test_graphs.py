"""CUDA graphs: every operator and a model of four blocks, captured on a side stream, replayed."""

from dataclasses import replace

import pytest
import torch

from diffratio_kernels.blocks.modules import ModBlock
from diffratio_kernels.testing.cases import CASE, operator_calls
from tools.launchers.check import same_bits

REPLAYS = 20
KEEP = {"one count": (29,), "counts of their own": (29, 13)}
CALLS = [
    (name, op) for name in ("cuda", "triton", "auto") for op in operator_calls(name, torch.float32, "cpu")
]

pytestmark = pytest.mark.gpu


def captured(run):
    """A graph of `run`, captured on a stream of its own after two runs outside, and its static results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = run()
    return graph, results


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize(("backend", "op"), CALLS)
def test_replay_with_new_inputs_equals_eager(backend, op, keep):
    case, dtype = replace(CASE, keep=KEEP[keep]), torch.bfloat16
    call = operator_calls(backend, dtype, "cuda", case=case)[op]
    for name, run in call.runs().items():
        graph, results = captured(run)
        for seed in range(REPLAYS):
            call.overwrite(operator_calls(backend, dtype, "cuda", seed, case)[op])
            expected = run()
            for result in results:
                result.zero_()
            graph.replay()
            for result, eager in zip(results, expected, strict=True):
                assert same_bits(result, eager), (name, seed)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_model_of_four_blocks(training):
    """The third block is bypassed, the last keeps every token."""
    options = {"context_width": 40, "device": "cuda", "dtype": torch.bfloat16}
    blocks = [ModBlock(144, 2, **options) for _ in range(4)]
    keep = (40, 17, 0, 64)
    x, modulation, text = (
        torch.randn(2, n, width, device="cuda").bfloat16() for n, width in ((64, 144), (6, 144), (9, 40))
    )
    parameters = [p for block in blocks for p in block.parameters()]

    def forward():
        hidden = x
        for block, k in zip(blocks, keep, strict=True):
            hidden = block(hidden, modulation, k, context_kv=block.project_context(text))
        return hidden

    def run():
        if not training:
            with torch.no_grad():
                return (forward(),)
        out = forward()
        grads = torch.autograd.grad(out, parameters, out.detach(), allow_unused=True)
        return out.detach(), *(grad for grad in grads if grad is not None)

    graph, results = captured(run)
    for _ in range(REPLAYS):
        for t in (x, modulation, text):
            t.normal_()
        expected = run()
        graph.replay()
        assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))
