"""Two bins blended: the definition, its compact form, and the gradient of the learned ratio."""

import math

import pytest
import torch

from diffratio_kernels import reference
from diffratio_kernels.testing.cases import ModBlockCase
from diffratio_kernels.types import Bins, Finish, Nested, PackedRows, Rescale

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
        logits = reference.router_logits(x, arguments["router_weight"])
        index = reference.select_tokens(logits, keep)[0]
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
    logits = reference.router_logits(arguments["x"], arguments["router_weight"])
    kept = [set(reference.select_tokens(logits, [k, k])[0].tolist()) for k in range(8)]
    assert all(small < large for small, large in zip(kept, kept[1:], strict=False))


def gelu(v):
    return 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


def packed(small, large, width=3):
    """Rows of two bins by plain lists: (sample, row of the small bin or None) of each packed row; the rows of
    both bins [T + S, width], and the bins."""
    rows, place = [], sum(large)
    for b, (few, many) in enumerate(zip(small, large, strict=True)):
        rows += [(b, place + j if j < few else None) for j in range(many)]
        place += few
    cu_seqlens = [torch.tensor([0, *torch.tensor(counts).cumsum(0)]).int() for counts in (large, small)]
    both = torch.randn(len(rows) + sum(small), width, dtype=torch.float64)
    weight = torch.tensor([0.25, 1.7], dtype=torch.float64)
    return rows, both, Bins(weight, *cu_seqlens, len(rows), sum(small))


@pytest.mark.parametrize(("small", "large"), BINS, ids=str)
def test_gelu_of_two_bins_element_by_element(small, large):
    rows, pre, bins = packed(small, large)
    weight = bins.weight_large
    expected = [
        [
            weight[b] * gelu(v) + (0 if at is None else (1 - weight[b]) * gelu(pre[at, d].item()))
            for d, v in enumerate(pre[t].tolist())
        ]
        for t, (b, at) in enumerate(rows)
    ]
    actual = reference.two_bin_gelu(pre, bins)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), **CLOSE)
    share = reference.branch_weight(bins)[:, 0]
    expected = [weight[b].item() if at is None else 1.0 for b, at in rows]
    torch.testing.assert_close(share, torch.tensor(expected, dtype=torch.float64), **CLOSE)
    places = reference.small_rows(bins).tolist()
    assert [rows[t][1] for t in places] == list(range(len(rows), len(pre)))


@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize(("small", "large"), BINS, ids=str)
def test_blend_of_two_bins_row_by_row(small, large, rescale):
    """w finish(large) + (1 - w) finish(small or x), with a branch that is already blended."""
    rows, hidden, bins = packed(small, large)
    weight = bins.weight_large
    x, logits = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    gate = torch.randn(2, 3, dtype=torch.float64)
    branches = torch.randn_like(hidden)
    index = torch.cat([7 * b + torch.randperm(7)[:k] for b, k in enumerate(large)])
    branch, expected = torch.zeros(len(rows), 3, dtype=torch.float64), x.reshape(-1, 3).clone()

    def finished(b, i, row):
        old, h, u = x.reshape(-1, 3)[i], hidden[row], gate[b] * branches[row]
        score = 2 * logits.flatten()[i].sigmoid()
        return {
            "mlp": h + score * u, "residual": old + score * (h + u - old), "output": score * (h + u),
            "none": h + u,
        }[rescale]  # fmt: skip

    for t, (b, at) in enumerate(rows):
        i, w = index[t], weight[b]
        branch[t] = w * branches[t] + (0 if at is None else (1 - w) * branches[at])
        rest = x.reshape(-1, 3)[i] if at is None else finished(b, i, at)
        expected[i] = w * finished(b, i, t) + (1 - w) * rest
    kept = PackedRows(index, 7, bins=bins)
    actual = reference.two_bin_blend(Finish(x, kept, hidden, branch, gate, logits, Rescale(rescale, 2.0)))
    torch.testing.assert_close(actual, expected.view(2, 7, 3), **CLOSE)


@pytest.mark.parametrize(("small", "large"), BINS, ids=str)
def test_attention_of_two_bins_is_one_attention_for_each_set(small, large):
    _, both, bins = packed(small, large, 16)
    query, key, value = (both[: sum(large)].view(-1, 2, 8) * factor for factor in (1, 2, 3))
    nested = Nested(bins.cu_seqlens_large, bins.cu_seqlens_small, max(large), max(small), sum(small))
    out = reference.two_bin_attention(query, key, value, nested)
    expected = []
    for counts in (large, small):
        for first, count in zip(bins.cu_seqlens_large.tolist(), counts, strict=False):
            q, k, v = (t[first : first + count].transpose(0, 1) for t in (query, key, value))
            weights = (q @ k.mT / math.sqrt(8)).softmax(-1)
            expected.append((weights @ v).transpose(0, 1))
    torch.testing.assert_close(out, torch.cat(expected), **CLOSE)
