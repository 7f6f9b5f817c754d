"""Two bins blended: the definition, its compact form, and the gradient of the learned ratio."""

import pytest
import torch

from diffratio_kernels import reference
from diffratio_kernels.testing.inputs import ModBlockCase

CLOSE = {"rtol": 0, "atol": 1e-12}
BINS = [([3, 3], [6, 6]), ([0, 2], [1, 7]), ([4, 0], [7, 7])]
RESCALE = ("mlp", "residual", "output", "none")


def block(rescale, seed=0):
    """All arguments of a float64 block but the kept counts, by name."""
    case = ModBlockCase(
        seed=seed, tokens=7, heads=2, head_dim=8, ragged_text=True, rescale=rescale, dtype=torch.float64
    )
    arguments = case.arguments()
    del arguments["keep"]
    return arguments


@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize(("small", "large"), BINS, ids=str)
def test_blend_is_the_weighted_sum_of_two_blocks(small, large, rescale):
    arguments, weight = block(rescale), torch.tensor([0.25, 0.7], dtype=torch.float64)
    outputs = [reference.mod_block(**arguments, keep=keep).tolist() for keep in (small, large)]
    expected = [
        [
            [(1 - w) * a + w * b for a, b in zip(*rows, strict=True)]
            for rows in zip(outputs[0][s], outputs[1][s], strict=True)
        ]
        for s, w in enumerate(weight.tolist())
    ]
    actual = reference.two_bin_block(**arguments, keep_small=small, keep_large=large, weight_large=weight)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, -1.5], ids=lambda w: f"w={w}")
@pytest.mark.parametrize(("small", "large"), BINS, ids=str)
def test_compact_form_is_the_same_blend(small, large, weight):
    """x + sum of w_c 1[i in S_c] (F_c,i - x_i), one routing for both bins; the weights sum to 1, any sign."""
    arguments = block("mlp")
    x = arguments["x"]
    weights = torch.full((2,), weight, dtype=torch.float64)
    compact = x.clone()
    for keep, share in ((small, 1 - weight), (large, weight)):
        index = reference.route(x, arguments["router_weight"], keep)[0]
        kept = torch.zeros(14, dtype=torch.float64).index_fill(0, index, 1).view(2, 7, 1)
        compact += share * kept * (reference.mod_block(**arguments, keep=keep) - x)
    blend = reference.two_bin_block(**arguments, keep_small=small, keep_large=large, weight_large=weights)
    torch.testing.assert_close(compact, blend, **CLOSE)


@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize(("small", "large"), BINS, ids=str)
def test_gradient_of_the_weight_is_how_far_the_bins_are_apart(small, large, rescale):
    arguments = block(rescale)
    weight = torch.tensor([0.25, 0.7], dtype=torch.float64, requires_grad=True)
    out = reference.two_bin_block(**arguments, keep_small=small, keep_large=large, weight_large=weight)
    grad_out = torch.randn(out.shape, dtype=torch.float64)
    (actual,) = torch.autograd.grad(out, weight, grad_out)
    apart = reference.mod_block(**arguments, keep=large) - reference.mod_block(**arguments, keep=small)
    torch.testing.assert_close(actual, (grad_out * apart).sum((1, 2)), rtol=1e-12, atol=1e-12)


def test_smaller_bin_is_a_subset_of_the_larger():
    arguments = block("mlp", seed=1)
    route = [arguments["x"], arguments["router_weight"]]
    kept = [set(reference.route(*route, [k, k])[0].tolist()) for k in range(8)]
    assert all(small < large for small, large in zip(kept, kept[1:], strict=False))
