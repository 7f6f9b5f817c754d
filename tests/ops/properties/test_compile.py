"""torch.compile sees one graph: no breaks, few recompilations over many sizes, the numbers of eager."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from diffratio_kernels import mod_block, two_bin_block
from diffratio_kernels.testing.budget import gradients
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase

SIZES = [  # N, kept
    (24, 13), (24, 7), (24, 24), (33, 13), (33, 32), (48, 5),
    (48, 44), (17, 9), (17, 2), (65, 33), (9, 8), (40, 21),
]  # fmt: skip
TEXTS = {"text": {}, "ragged text": {"ragged_text": True}, "no text": {"text": None}}
EPS = torch.finfo(torch.float32).eps


def model(x, **arguments):
    """Something around the block, so that the graph holds more than one call."""
    block = two_bin_block if "weight_large" in arguments else mod_block
    return block(torch.tanh(x), **arguments) + x


@pytest.fixture
def compiled():
    """The model compiled without graph breaks allowed, and the counter of its graphs."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend("aot_eager")
    yield torch.compile(model, fullgraph=True, dynamic=True, backend=counter), counter
    assert not counters["graph_break"]
    torch._dynamo.reset()


def calls(**options):
    for tokens, keep in SIZES:
        arguments = ModBlockCase(seed=0, tokens=tokens, keep=(keep,), **options).arguments()
        yield arguments | {"keep": keep}


def assert_close(actual, expected, largest=None):
    """The same operations, in another grouping: 30 roundings of the largest value."""
    atol = 30 * EPS * (expected.abs().max().item() if largest is None else largest)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS)
def test_inference_over_twelve_sizes_needs_at_most_three_graphs(compiled, text):
    function, counter = compiled
    for arguments in calls(**TEXTS[text]):
        assert_close(function(**arguments), model(**arguments))
    assert counter.frame_count <= 3


@pytest.mark.parametrize("text", ["ragged text", "no text"])
def test_training_over_twelve_sizes_needs_at_most_three_graphs(compiled, text):
    function, counter = compiled
    for arguments in calls(**TEXTS[text]):
        out, grads = gradients(function, arguments, seed=1)
        expected, expected_grads = gradients(model, arguments, seed=1)
        assert_close(out, expected)
        largest = max(grad.abs().max().item() for grad in expected_grads.values())
        for name, grad in grads.items():  # some are sums that cancel: roundings follow the largest
            assert_close(grad, expected_grads[name], largest)
    assert counter.frame_count <= 3


@torch.no_grad()
def test_samples_may_keep_counts_of_their_own(compiled):
    function, counter = compiled
    for keep in ([3, 13], [24, 5], [7, 1], [2, 20]):
        arguments = ModBlockCase(seed=0, keep=tuple(keep), ragged_text=True).arguments()
        assert_close(function(**arguments), model(**arguments))
    assert counter.frame_count <= 3


def two_bin_calls(sizes, **options):
    for tokens, keep in sizes:
        case = TwoBinCase(seed=0, tokens=tokens, keep=(keep,), keep_small=(keep // 2,), **options)
        yield case.arguments() | {"keep_large": keep, "keep_small": keep // 2}


@torch.no_grad()
def test_inference_of_two_bins_over_twelve_sizes_needs_at_most_three_graphs(compiled):
    function, counter = compiled
    for arguments in two_bin_calls(SIZES, ragged_text=True):
        assert_close(function(**arguments), model(**arguments))
    assert counter.frame_count <= 3


def test_training_of_two_bins_needs_at_most_two_graphs(compiled):
    function, counter = compiled
    for arguments in two_bin_calls(SIZES[:2], text=None):
        out, grads = gradients(function, arguments, seed=1)
        expected, expected_grads = gradients(model, arguments, seed=1)
        assert_close(out, expected)
        largest = max(grad.abs().max().item() for grad in expected_grads.values())
        for name, grad in grads.items():
            assert_close(grad, expected_grads[name], largest)
    assert counter.frame_count <= 2
