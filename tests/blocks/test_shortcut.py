"""Calls like one that passed go straight to the kernel: what they must see, and what they must not keep."""

import gc
import weakref
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffratio_kernels import mod_block, two_bin_block
from diffratio_kernels._register import Shortcut
from diffratio_kernels.blocks import mod_block as of_one_bin
from diffratio_kernels.blocks import two_bin
from diffratio_kernels.blocks import two_bin_block as of_two_bins
from diffratio_kernels.ops.route import reference
from diffratio_kernels.ops.two_bin_gelu.reference import places_of, small_rows
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase
from diffratio_kernels.types import Bins

CASES = {"one bin": (ModBlockCase, mod_block), "two bins": (TwoBinCase, two_bin_block)}


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """No call has passed yet, and constants are made again."""
    for shortcut in (of_one_bin._mod_block, of_two_bins._two_bin_block):
        monkeypatch.setattr(shortcut, "passed", set())
    monkeypatch.setattr(reference, "_constant", {})
    two_bin._places.cache_clear()
    with torch.no_grad():
        yield


@pytest.fixture
def asked(monkeypatch):
    """Counts calls that go to the dispatcher."""
    asked = mock.Mock(side_effect=of_one_bin._mod_block.op)
    monkeypatch.setattr(of_one_bin._mod_block, "op", asked)
    return asked


@pytest.mark.parametrize("kind", sorted(CASES))
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_second_call_has_the_bits_of_the_first(kind, backend):
    case, block = CASES[kind]
    arguments = case(seed=1).arguments()
    first, second, third = (block(**arguments, backend=backend) for _ in range(3))
    assert torch.equal(first, second) and torch.equal(first, third)
    assert second.data_ptr() != third.data_ptr()


def test_the_second_call_skips_the_dispatcher_and_another_shape_does_not(asked):
    for keep, calls in (([13], 1), ([13], 1), ([12], 2), ([13, 12], 3), ([13, 12], 3)):
        mod_block(**ModBlockCase(seed=1).arguments() | {"keep": keep})
        assert asked.call_count == calls


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.to(torch.float16),
        lambda weight: weight[:, :8],
        lambda weight: weight.to("meta"),
        lambda weight: weight.to_sparse(),
    ],
    ids=["dtype", "shape", "device", "layout"],
)
def test_a_weight_that_changed_is_an_error_again(change):
    arguments = ModBlockCase(seed=1).arguments()
    for _ in range(2):
        mod_block(**arguments)
    with pytest.raises((TypeError, ValueError), match="qkv_weight"):
        mod_block(**arguments | {"qkv_weight": change(arguments["qkv_weight"])})


def test_constants_that_changed_are_errors_again():
    arguments = ModBlockCase(seed=1).arguments()
    for _ in range(2):
        mod_block(**arguments)
    for change in ({"num_heads": 3}, {"keep": [25]}, {"rescale": "all"}, {"eps": -1.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            mod_block(**arguments | change)


def test_values_that_are_checked_are_checked_in_every_call(asked):
    arguments = ModBlockCase(seed=1, ragged_text=True).arguments()
    for _ in range(2):
        mod_block(**arguments)
    assert asked.call_count == 2
    with pytest.raises(ValueError, match="context_lengths"):
        mod_block(**arguments | {"context_lengths": torch.tensor([1, 9], dtype=torch.int32)})


def test_a_lazy_sign_is_resolved_in_every_call():
    arguments = ModBlockCase(seed=1).arguments()
    x = arguments["x"]
    negated = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert negated.is_neg() and torch.equal(negated, x)
    expected = mod_block(**arguments)
    for _ in range(2):
        assert torch.equal(mod_block(**arguments | {"x": negated}), expected)


class _Looks(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "watcher",
    [
        torch.enable_grad,
        _Looks,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
        lambda: torch.device("cpu"),
    ],
    ids=["gradients", "mode", "autocast", "profiler", "function mode"],
)
def test_who_looks_is_shown_the_operator(watcher, asked):
    arguments = ModBlockCase(seed=1).arguments()
    for _ in range(2):
        mod_block(**arguments)
    before = asked.call_count
    with watcher():
        mod_block(**arguments)
    assert (before, asked.call_count) == (1, 2)


def test_the_backend_is_chosen_in_every_call(monkeypatch):
    arguments = ModBlockCase(seed=1, tokens=8, keep=(4,)).arguments()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with mock.patch.dict("diffratio_kernels._triton.stand_ins", {"cpu": lambda kernel, *_: None}):
        arguments["index"] = None
        of_one_bin._mod_block.passed.clear()
        with mock.patch("diffratio_kernels.blocks.mod_block.routed", lambda *_: arguments["x"].clone()):
            for _ in range(2):
                mod_block(**arguments, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert of_one_bin._mod_block.passed
    with pytest.raises(ValueError, match="triton.*not available"):
        mod_block(**arguments, backend="triton")


def test_few_signatures_are_kept():
    shortcut = Shortcut(lambda x, n: x, lambda x, n: x)
    shortcut.ROOM = 3
    for n in range(10):
        shortcut(torch.zeros(2), n)
        assert 0 < len(shortcut.passed) <= 3


def test_one_value_by_two_names_is_two_calls():
    checked = mock.Mock(side_effect=lambda **_: 0)
    shortcut = Shortcut(checked, lambda **_: 0)
    for name in ("keep", "count", "keep", "count"):
        shortcut(**{name: 3})
    assert checked.call_args_list == [mock.call(keep=3), mock.call(count=3)]


def test_no_tensor_is_kept():
    arguments = ModBlockCase(seed=1).arguments()
    for _ in range(2):
        mod_block(**arguments)
    kept = [weakref.ref(t) for t in arguments.values() if isinstance(t, torch.Tensor)]
    del arguments
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


def test_constants_are_made_once_and_are_few():
    x = torch.zeros(1)
    first = reference.constant_cu_seqlens(3, 5, x)
    assert first.tolist() == [0, 5, 10, 15] and first.dtype == torch.int32
    assert reference.constant_cu_seqlens(3, 5, x) is first
    assert reference.constant_cu_seqlens(3, 6, x).tolist() == [0, 6, 12, 18]
    for length in range(300):
        reference.constant_cu_seqlens(1, length, x)
    assert len(reference._constant) == 256 and reference.constant_cu_seqlens(3, 5, x) is first


def test_what_is_traced_or_captured_leaves_no_constant(monkeypatch):
    x = torch.zeros(1)
    with _Looks():
        reference.constant_cu_seqlens(3, 5, x)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert reference.constants_may_be_kept(x)
    assert not reference.constants_may_be_kept(mock.Mock(spec=torch.Tensor, is_cuda=True))
    assert not reference._constant


@pytest.mark.parametrize("large, small", [([5, 3], [2, 3]), ([4, 4, 4], [0, 4, 1]), ([0, 2], [0, 1])])
def test_places_of_two_bins_follow_from_their_counts(large, small):
    bins = two_bin.bins_of(torch.ones(len(large)), small, large, torch.zeros(1))
    assert two_bin.bins_of(torch.ones(len(large)), small, large, torch.zeros(1)).places is bins.places
    made = places_of(
        Bins(bins.weight_large, bins.cu_seqlens_large, bins.cu_seqlens_small, sum(large), sum(small))
    )
    sample = [b for b, count in enumerate(large) for _ in range(count)]
    only_large = [n >= few for count, few in zip(large, small, strict=True) for n in range(count)]
    for places in (bins.places, made):
        assert places.sample.tolist() == sample and places.only_large.tolist() == only_large
        assert torch.equal(places.small, small_rows(bins))
