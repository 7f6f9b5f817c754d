"""Kernels run on the current stream: they wait for what was queued there, and for nothing else."""

import pytest
import torch

from diffratio_kernels.testing.cases import operator_calls
from tools.launchers.check import same_bits

CYCLES = 200_000_000
"""A tenth of a second at 2 GHz: far longer than the launches that follow take."""
CALLS = [
    (name, op) for name in ("cuda", "triton", "auto") for op in operator_calls(name, torch.float32, "cpu")
]

pytestmark = pytest.mark.gpu


def pair(backend, op):
    """A call, another with new values in the same shapes, and both warmed up."""
    calls = [operator_calls(backend, torch.bfloat16, "cuda", seed)[op] for seed in (1, 2)]
    for call in calls:
        for run in call.runs().values():
            run()
    torch.cuda.synchronize()
    return calls


def equal(results, expected):
    return all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize(("backend", "op"), CALLS)
def test_kernels_wait_for_a_producer_on_their_own_stream(backend, op):
    call, other = pair(backend, op)
    old, stream = {n: t.clone() for n, t in tensors(call)}, torch.cuda.Stream()
    for name, run in call.runs().items():
        expected, before = other.runs()[name](), run()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(CYCLES)
            call.overwrite(other)
            results = run()
        stream.synchronize()
        assert equal(results, expected), name

        for n, t in tensors(call):
            t.copy_(old[n])
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(CYCLES)
            call.overwrite(other)
        wrong = run()  # the control: on the default stream, which does not wait for that one
        torch.cuda.synchronize()
        assert equal(wrong, before) and not equal(wrong, expected), name
        for n, t in tensors(call):
            t.copy_(old[n])


def tensors(call):
    return [(name, t) for name, t in call.arguments.items() if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize(("backend", "op"), CALLS)
def test_two_streams_do_not_disturb_each_other(backend, op):
    """100 rounds: a run on each of two streams, neither waits for the other; all results are kept."""
    calls, streams = pair(backend, op), [torch.cuda.Stream() for _ in range(2)]
    for name in calls[0].runs():
        expected = [call.runs()[name]() for call in calls]
        torch.cuda.synchronize()
        results = []
        for _ in range(100):
            for call, stream in zip(calls, streams, strict=True):
                with torch.cuda.stream(stream):
                    results.append(call.runs()[name]())
        torch.cuda.synchronize()
        assert all(equal(result, expected[i % 2]) for i, result in enumerate(results)), name
