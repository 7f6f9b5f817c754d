"""How many tokens a ratio keeps, which bins it lies between, and which tokens these are."""

import math
from fractions import Fraction

import pytest
import torch

from diffratio_kernels import kept_tokens
from diffratio_kernels.reference import bracketing_bins, select_tokens, snap_to_bins

PAPER = {  # kept tenths 10 ... 3
    64: [64, 58, 52, 45, 39, 32, 26, 20],
    256: [256, 231, 205, 180, 154, 128, 103, 77],
    1024: [1024, 922, 820, 717, 615, 512, 410, 308],
    4096: [4096, 3687, 3277, 2868, 2458, 2048, 1639, 1229],
}


@pytest.mark.parametrize("tokens", PAPER)
def test_kept_tokens_of_the_usual_resolutions(tokens):
    assert [kept_tokens(tenths, tokens) for tenths in range(10, 2, -1)] == PAPER[tokens]


def test_kept_tokens_are_the_exact_ceiling():
    for tokens in range(300):
        for tenths in range(11):
            assert kept_tokens(tenths, tokens) == math.ceil(Fraction(tenths * tokens, 10)), (tenths, tokens)


@pytest.mark.parametrize(("tenths", "tokens", "kept"), [(3, 100, 30), (6, 400, 240)])
def test_kept_tokens_avoid_the_float32_trap(tenths, tokens, kept):
    candidates = torch.arange(1, 0.2, -0.1)  # the authors' bins
    assert math.ceil(candidates[10 - tenths] * tokens) == kept + 1
    assert kept_tokens(tenths, tokens) == kept


@pytest.mark.parametrize("middle", [0.95, 0.85, 0.75, 0.65, 0.55, 0.45, 0.35])
def test_snap_to_bins_takes_the_larger_of_two_as_near(middle):
    larger = math.ceil(round(10 * middle, 3))
    assert snap_to_bins(middle) == larger
    assert snap_to_bins(middle - 1e-3) == larger - 1
    assert snap_to_bins(middle + 1e-3) == larger


@pytest.mark.parametrize(
    ("ratio", "bins", "nearest"),
    [(0.0, (10, 3), 3), (2.0, (10, 3), 10), (0.5, (10, 0), 10), (0.49, (10, 0), 0), (0.2, (7,), 7)],
)
def test_snap_to_bins_of_other_bins(ratio, bins, nearest):
    assert snap_to_bins(ratio, bins) == nearest
    assert snap_to_bins(ratio, tuple(reversed(bins))) == nearest


@pytest.mark.parametrize(
    ("ratio", "lower", "upper", "weight"),
    [
        (1.0, 9, 10, 1.0),
        (0.95, 9, 10, 0.5),
        (0.91, 9, 10, 0.1),
        (0.5, 4, 5, 1.0),
        (0.3, 3, 4, 0.0),
        (0.33, 3, 4, 0.3),
        (0.1, 3, 4, 0.0),  # below the smallest bin: clamped, where the authors' code extrapolates to -2
        (1.2, 9, 10, 1.0),
    ],
)
def test_bracketing_bins_and_the_weight_of_the_upper(ratio, lower, upper, weight):
    a, b, w = bracketing_bins(ratio)
    assert (a, b) == (lower, upper)
    assert w == pytest.approx(weight, abs=1e-12)


def test_blended_bins_give_back_the_ratio():
    for bins in ((10, 9, 8, 7, 6, 5, 4, 3), (0, 10), (2, 7, 3)):
        for step in range(1001):
            ratio = min(bins) / 10 + step / 1000 * (max(bins) - min(bins)) / 10
            a, b, w = bracketing_bins(ratio, bins)
            assert 0 <= w <= 1 and a < b
            assert ((1 - w) * a + w * b) / 10 == pytest.approx(ratio, abs=1e-12)


def test_a_single_bin_is_both_neighbours():
    assert bracketing_bins(0.4, (7,)) == (7, 7, 1.0)


@pytest.mark.parametrize("small", [0, 1, 4, 9])
def test_both_bins_are_prefixes_of_one_selection(small):
    """[rows of the small bin, ascending | rows only in the large bin, ascending], sample after sample."""
    logits, large = torch.randn(3, 12), [9, 12, small]
    index, offsets = select_tokens(logits, large, [small] * 3)
    for b in range(3):
        rows = index[offsets[b] : offsets[b + 1]]
        best = (logits[b].argsort(descending=True) + 12 * b).tolist()
        assert rows[:small].tolist() == sorted(best[:small])
        assert rows[small:].tolist() == sorted(best[small : large[b]])


def test_the_authors_mod_rounds_down_and_keeps_one():
    assert kept_tokens(8, 1024, "floor") == 819 and kept_tokens(8, 1024) == 820
    assert [kept_tokens(n, 5, "floor") for n in range(11)] == [0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    with pytest.raises(ValueError, match="rounding='round' must be one of"):
        kept_tokens(3, 5, "round")


def test_offsets_count_the_kept_tokens():
    index, offsets = select_tokens(torch.randn(3, 5), [2, 0, 5])
    assert offsets.tolist() == [0, 2, 2, 7] and offsets.dtype == torch.int32
    assert index.shape == (7,) and index.dtype == torch.int64
