"""A selection given as `index` must be the one that `keep` speaks of, and what surrounds that argument."""

import pytest
import torch
from torch.autograd import forward_ad

import diffratio_kernels as dk
from diffratio_kernels.testing.inputs import ModBlockCase


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


def test_a_bypassed_block_gives_a_contiguous_copy():
    given = arguments((0,))
    x = given["x"].transpose(1, 2).contiguous().transpose(1, 2)
    out = dk.mod_block(**given | {"x": x})
    assert out.is_contiguous() and torch.equal(out, x) and out.data_ptr() != x.data_ptr()


def test_forward_mode_is_refused_instead_of_losing_the_tangent():
    given = arguments((4,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="mod_block"):
        dk.mod_block(**given | {"x": forward_ad.make_dual(given["x"], torch.ones_like(given["x"]))})


def test_kept_counts_may_be_numpy_integers():
    given = arguments((4,))
    keep = pytest.importorskip("numpy").int64(4)
    assert torch.equal(dk.mod_block(**given | {"keep": keep}), dk.mod_block(**given))
