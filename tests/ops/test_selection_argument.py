"""A selection given as `index` must be the one that `keep` speaks of, and what surrounds that argument."""

import importlib
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad

import diffratio_kernels as dk
from diffratio_kernels import reference
from diffratio_kernels.testing.calls import two_bin_arguments
from diffratio_kernels.testing.inputs import ModBlockCase, TwoBinCase


def arguments(keep):
    return ModBlockCase(seed=0, keep=keep).arguments()


@pytest.mark.parametrize(
    "change", [lambda index: index.flip(0), lambda index: index.roll(3)], ids=["flip", "roll"]
)
def test_an_index_of_other_counts_or_another_order_of_samples_is_an_error(change):
    given = arguments((2, 6))
    index = dk.route(given["x"], given["router_weight"], [2, 6])[0]
    dk.mod_block(**given, index=index)
    with pytest.raises(ValueError, match="index must hold keep"):
        dk.mod_block(**given, index=change(index))
    with pytest.raises(ValueError, match="index must hold keep"):
        dk.route(given["x"], given["router_weight"], [6, 2], index=index)
    bins = {"keep_small": [1, 3], "keep_large": given.pop("keep"), "weight_large": torch.rand(2)}
    dk.two_bin_block(**given, **bins, index=index)
    with pytest.raises(ValueError, match="index must hold keep_large"):
        dk.two_bin_block(**given, **bins, index=change(index))


@pytest.mark.parametrize("keep", [(6,), (2, 6)], ids=["equal", "unequal"])
def test_a_block_looks_for_the_places_of_its_rows_only_for_an_index_from_outside(keep, monkeypatch):
    """The selection knows them; in training they are not kept."""
    given, asked = arguments(keep), []
    index = dk.route(given["x"], given["router_weight"], ModBlockCase(seed=0, keep=keep).full_keep)[0]
    for name in ("scatter_rescale", "linear_scatter"):
        module = importlib.import_module(f"diffratio_kernels.kernels.triton.{name}")
        plain = module.row_places
        monkeypatch.setattr(module, "row_places", lambda *args, plain=plain: asked.append(1) or plain(*args))
    expected = dk.mod_block(**given, implementation="triton")
    assert not asked
    assert torch.equal(dk.mod_block(**given, implementation="triton", index=index), expected)
    assert len(asked) == 1


def test_rows_that_int32_cannot_count_are_refused():
    x = torch.zeros(1, 1, 8).expand(2**15, 2**16, 8)
    with pytest.raises(ValueError, match=r"route: x must have fewer than 2\^31 rows .* 32768 times 65536"):
        dk.route(x, torch.zeros(8), 1)


@pytest.mark.parametrize("capturing", [True, False])
def test_offsets_that_a_graph_reads_outlive_the_cache(capturing, monkeypatch):
    module, made = importlib.import_module("diffratio_kernels.ops.route"), []

    def on_the_cpu(keep, device):
        offsets = reference.packed_offsets(keep, torch.device("cpu"))
        made.append(weakref.ref(offsets))
        return offsets

    monkeypatch.setattr(module, "_read_by_graphs", set())
    monkeypatch.setattr(module, "reference", SimpleNamespace(packed_offsets=on_the_cpu))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    module._copied_offsets.cache_clear()
    module.packed_offsets([3, 5], torch.device("cuda"))
    module._copied_offsets.cache_clear()
    assert (made[0]() is not None) == capturing


def test_a_bypassed_block_gives_a_contiguous_copy():
    given = arguments((0,))
    x = given["x"].transpose(1, 2).contiguous().transpose(1, 2)
    out = dk.mod_block(**given | {"x": x})
    assert out.is_contiguous() and torch.equal(out, x) and out.data_ptr() != x.data_ptr()


def test_forward_mode_is_refused_instead_of_losing_the_tangent():
    given = arguments((4,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="mod_block"):
        dk.mod_block(**given | {"x": forward_ad.make_dual(given["x"], torch.ones_like(given["x"]))})
    two_bins = two_bin_arguments(TwoBinCase(seed=0))
    for op, name in (("two_bin_block", "weight_large"), ("two_bin_blend", "x"), ("two_bin_gelu", "pre")):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=op):
            dual = forward_ad.make_dual(two_bins[op][name], torch.ones_like(two_bins[op][name]))
            getattr(dk, op)(**two_bins[op] | {name: dual})


def test_kept_counts_may_be_numpy_integers():
    given = arguments((4,))
    keep = pytest.importorskip("numpy").int64(4)
    assert torch.equal(dk.mod_block(**given | {"keep": keep}), dk.mod_block(**given))
    bins = {"keep_large": given.pop("keep"), "weight_large": torch.rand(2)}
    out, expected = (dk.two_bin_block(**given, **bins, keep_small=k) for k in (keep, 4))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_a_given_selection_of_two_bins_is_taken_as_it_is(implementation):
    """Also one that the scores would not make, and with either set in any order."""
    case = TwoBinCase(seed=0, keep=(13, 20), keep_small=(5, 20), dtype=torch.float64)
    router, block = (two_bin_arguments(case)[op] for op in ("route", "two_bin_block"))
    option = {"implementation": implementation}
    made = dk.route(**router, **option)[0]
    assert torch.equal(dk.two_bin_block(**block, **option), dk.two_bin_block(**block, **option, index=made))
    other = torch.cat([torch.randperm(24)[:k] + 24 * b for b, k in enumerate(case.full_keep)])
    index, offsets, logits = dk.route(**router, **option, index=other)
    assert torch.equal(index, other) and index.data_ptr() != other.data_ptr()
    assert offsets.tolist() == [0, 13, 33] and torch.equal(logits, dk.route(**router, **option)[2])
    out = dk.two_bin_block(**block, **option, index=other)
    counts = {"keep_small": case.full_keep_small, "keep_large": case.full_keep}
    torch.testing.assert_close(
        out, reference.two_bin_block(**block | counts, index=other), rtol=0, atol=1e-12
    )
