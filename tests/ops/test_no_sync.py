"""The host never waits for a value of a tensor: nothing to break CUDA graphs or torch.compile."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from diffratio_kernels import mod_block, two_bin_block
from diffratio_kernels.testing.inputs import ModBlockCase, TwoBinCase

READS = {
    "item",
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique",
    "equal",
    "bincount",
}
TEXTS = {"text": {}, "ragged text": {"ragged_text": True}, "no text": {"text": None}}


def values_read(call):
    """Operators that make the host read a tensor, also inside other operators."""
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages()} & {f"aten::{name}" for name in READS}


def block_of(case):
    return two_bin_block if isinstance(case, TwoBinCase) else mod_block


def forward(case, wants_gradient=False, **changes):
    arguments = case.arguments() | changes
    leaves = {
        name: t.detach().clone().requires_grad_(wants_gradient)
        for name, t in arguments.items()
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    }
    return block_of(case)(**arguments | leaves)


@pytest.mark.parametrize("text", ["text", "no text"])
def test_equal_counts_read_nothing_back(text):
    """Training on the native CPU kernels is left out: there each step checks its index again."""
    case = ModBlockCase(seed=0, **TEXTS[text])
    assert not values_read(lambda: forward(case, implementation="native"))
    assert not values_read(lambda: forward(case, implementation="reference"))
    assert not values_read(lambda: forward(case, True, implementation="reference").sum().backward())


@pytest.mark.parametrize("text", ["text", "no text"])
def test_two_bins_of_equal_counts_read_nothing_back(text):
    """On the CPU "auto" looks at the weights before the backward pass is built; told, it does not."""
    case, reference = TwoBinCase(seed=0, **TEXTS[text]), {"implementation": "reference"}
    assert not values_read(lambda: forward(case, implementation="native"))
    assert not values_read(lambda: forward(case, **reference))
    none = reference | {"forward_only": "none"}
    assert not values_read(lambda: forward(case, True, **none).sum().backward())
    assert values_read(lambda: forward(case, True, **reference))


def test_the_guard_above_sees_a_read():
    t = torch.ones(3)
    for read in (lambda: t[0].item(), lambda: bool(t[0]), lambda: t[t > 0], lambda: torch.equal(t, t + 1)):
        assert values_read(read)


@pytest.mark.parametrize("implementation", ["native", "triton", "reference"])
@pytest.mark.parametrize("keep", [(13,), (5, 20), (0, 24)], ids=str)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [ModBlockCase, TwoBinCase])
def test_tensors_without_values_go_through(make, text, keep, implementation):
    """Fake tensors have no values at all; ragged samples and given selections take no other way either."""
    bins = {"keep_small": tuple(k // 2 for k in keep)} if make is TwoBinCase else {}
    case = make(seed=0, keep=keep, **bins, **TEXTS[text])
    arguments = case.arguments() | {"index": torch.arange(sum(case.full_keep))}
    with FakeTensorMode() as mode:
        fake = {n: mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for n, t in arguments.items()}
        floats = [
            t.requires_grad_() for t in fake.values() if isinstance(t, torch.Tensor) and t.is_floating_point()
        ]
        out = block_of(case)(**fake, implementation=implementation)
        grads = torch.autograd.grad(out, floats, torch.empty_like(out))
    assert out.shape == arguments["x"].shape and all(
        g.shape == t.shape for g, t in zip(grads, floats, strict=True)
    )


def test_fake_tensors_refuse_to_be_read():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(3).sum().item()
