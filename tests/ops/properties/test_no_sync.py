"""The host never waits for a value of a tensor: nothing to break CUDA graphs or torch.compile."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from diffratio_kernels import _checks, blocks, mod_block, two_bin_block
from diffratio_kernels.ops.attention import op as attention
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase

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
READABLE = _checks.readable
TEXTS = {"text": {}, "ragged text": {"ragged_text": True}, "no text": {"text": None}}


def values_read(call):
    """Operators that make the host read a tensor, also inside other operators."""
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages()} & {f"aten::{name}" for name in READS}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Checks of arguments look at no value."""
    for module in (_checks, attention, blocks.mod_block, blocks.two_bin_block):
        monkeypatch.setattr(module, "readable", unreadable)


def unreadable(t):
    return False


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


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("text", ["text", "no text"])
@pytest.mark.parametrize("make", [ModBlockCase, TwoBinCase])
def test_equal_counts_read_nothing_back(make, text, backend, as_on_a_gpu):
    case = make(seed=0, **TEXTS[text])
    assert not values_read(lambda: forward(case, backend=backend))
    assert not values_read(lambda: forward(case, True, backend=backend).sum().backward())


@pytest.mark.parametrize("make", [ModBlockCase, TwoBinCase])
def test_inference_on_the_cpu_reads_nothing_back_either(make):
    for backend in ("cpu", "reference"):
        assert not values_read(lambda name=backend: forward(make(seed=0), backend=name))


@pytest.mark.parametrize("make", [ModBlockCase, TwoBinCase])
def test_training_on_the_cpu_checks_the_index_of_each_step(make):
    assert "aten::bincount" in values_read(lambda: forward(make(seed=0), True))


def test_auto_looks_at_the_weights_of_bins_in_training_and_told_it_does_not(as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(blocks.two_bin_block, "readable", READABLE)
    assert values_read(lambda: forward(TwoBinCase(seed=0), True))
    assert not values_read(lambda: forward(TwoBinCase(seed=0), True, forward_only="none"))


def test_the_guard_above_sees_a_read():
    t = torch.ones(3)
    for read in (lambda: t[0].item(), lambda: bool(t[0]), lambda: t[t > 0], lambda: torch.equal(t, t + 1)):
        assert values_read(read)


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("keep", [(13,), (5, 20), (0, 24)], ids=str)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [ModBlockCase, TwoBinCase])
def test_tensors_without_values_go_through(make, text, keep, backend):
    """Fake tensors have no values at all; ragged samples and given selections take no other way either."""
    bins = {"keep_small": tuple(k // 2 for k in keep)} if make is TwoBinCase else {}
    case = make(seed=0, keep=keep, **bins, **TEXTS[text])
    arguments = case.arguments() | {"index": torch.arange(sum(case.full_keep))}
    with FakeTensorMode() as mode:
        fake = {n: mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for n, t in arguments.items()}
        floats = [
            t.requires_grad_() for t in fake.values() if isinstance(t, torch.Tensor) and t.is_floating_point()
        ]
        out = block_of(case)(**fake, backend=backend)
        grads = torch.autograd.grad(out, floats, torch.empty_like(out))
    assert out.shape == arguments["x"].shape and all(
        g.shape == t.shape for g, t in zip(grads, floats, strict=True)
    )


def test_fake_tensors_refuse_to_be_read():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(3).sum().item()
