"""Kept counts and a selection given as `index`, as both blocks take them."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels import reference
from diffratio_kernels._backends import kernels
from diffratio_kernels._triton.launch import row_map_of
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase, two_bin_arguments


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

    def asking(rows, count):
        if rows.row_map is None:
            asked.append(rows)
        return row_map_of(rows, count)

    index = dk.route(given["x"], given["router_weight"], ModBlockCase(seed=0, keep=keep).full_keep)[0]
    for folder, name in (("scatter_rescale", "triton"), ("fused_linear", "scatter")):
        monkeypatch.setattr(kernels(folder, name), "row_map_of", asking)
    expected = dk.mod_block(**given, backend="triton")
    assert not asked
    assert torch.equal(dk.mod_block(**given, backend="triton", index=index), expected)
    assert len(asked) == 1


def test_a_bypassed_block_gives_a_contiguous_copy():
    given = arguments((0,))
    x = given["x"].transpose(1, 2).contiguous().transpose(1, 2)
    out = dk.mod_block(**given | {"x": x})
    assert out.is_contiguous() and torch.equal(out, x) and out.data_ptr() != x.data_ptr()


def test_kept_counts_may_be_numpy_integers():
    given = arguments((4,))
    keep = pytest.importorskip("numpy").int64(4)
    assert torch.equal(dk.mod_block(**given | {"keep": keep}), dk.mod_block(**given))
    bins = {"keep_large": given.pop("keep"), "weight_large": torch.rand(2)}
    out, expected = (dk.two_bin_block(**given, **bins, keep_small=k) for k in (keep, 4))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_given_selection_of_two_bins_is_taken_as_it_is(backend):
    """Also one that the scores would not make, and with either set in any order."""
    case = TwoBinCase(seed=0, keep=(13, 20), keep_small=(5, 20), dtype=torch.float64)
    router, block = (two_bin_arguments(case)[op] for op in ("route", "two_bin_block"))
    option = {"backend": backend}
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
