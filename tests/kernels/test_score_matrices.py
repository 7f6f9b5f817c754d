"""Which tokens are kept, for every score matrix that breaks a top-k: C++, reference and plain Python."""

from functools import cache

import pytest
import torch

from diffratio_kernels import route
from diffratio_kernels._backends import kernels
from tools.checks.scores import expected_selection, routed_to
from tools.checks.scores import score_matrices as draw_score_matrices

score_matrices = cache(draw_score_matrices)

DTYPES = {64: (torch.float32, torch.float64, torch.bfloat16, torch.float16)}  # other N in float32 only
SIZES = (1, 7, 64, 257, 1024)
CASES = [
    pytest.param(
        dtype, name, tokens, keep, id=f"{str(dtype).removeprefix('torch.')}-{name}-{keep} of {tokens}"
    )
    for tokens in SIZES
    for dtype in DTYPES.get(tokens, (torch.float32,))
    for name in score_matrices(1)
    for keep in sorted({0, 1, tokens // 2, tokens - 1, tokens})
]


def expected_index(scores, keep):
    """Rows of the flattened [B*N] by plain Python, for one kept count per sample."""
    samples, tokens = scores.shape
    return [b * tokens + i for b in range(samples) for i in expected_selection(scores[b].tolist(), keep[b])]


@pytest.mark.parametrize(("dtype", "name", "tokens", "keep"), CASES)
def test_kept_tokens_are_those_of_plain_python(dtype, name, tokens, keep):
    scores = score_matrices(tokens)[name].to(dtype)  # what the cast leaves of them is what must be ordered
    x, weight = routed_to(scores, 5)
    expected = expected_index(scores, [keep, keep])
    for backend in ("cpu", "reference"):
        index, offsets, logits = route(x, weight, keep, backend=backend)
        assert index.tolist() == expected, backend
        assert offsets.tolist() == [0, keep, 2 * keep], backend
        assert torch.equal(logits.nan_to_num(7), scores.to(logits.dtype).nan_to_num(7)), backend
    # A product x . w makes every zero +0, so the selections are also asked without it.
    scores = scores.to(logits.dtype)
    for backend in ("cpu", "reference"):
        index, cu_seqlens, _ = kernels("route", backend).select(scores, [keep, keep])
        assert index.tolist() == expected and cu_seqlens.tolist() == [0, keep, 2 * keep], backend


def test_there_are_enough_cases():
    assert len(CASES) >= 240


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", score_matrices(1))
def test_samples_keep_counts_of_their_own(name, backend):
    scores = score_matrices(33)[name].repeat(2, 1)
    keep = [0, 33, 7, 20]
    index, offsets, _ = route(*routed_to(scores, 8), keep, backend=backend)
    assert index.tolist() == expected_index(scores, keep)
    assert offsets.tolist() == [0, 0, 33, 40, 60]


@pytest.mark.parametrize("name", score_matrices(1))
def test_tokens_kept_by_fewer_are_kept_by_more(name):
    x, weight = routed_to(score_matrices(33)[name], 8)
    kept = [set(route(x, weight, keep)[0].tolist()) for keep in range(34)]
    assert all(few < more for few, more in zip(kept, kept[1:], strict=False))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", score_matrices(1))
@pytest.mark.parametrize("tokens", [7, 64, 257])
def test_the_small_bin_comes_first_and_is_its_own_selection(tokens, name, backend):
    """For every pair of counts at once: a sample for each."""
    counts = sorted({0, 1, tokens // 3, tokens // 2, tokens - 1, tokens})
    keep_small, keep = zip(*((a, b) for a in counts for b in counts if a <= b), strict=True)
    samples = len(keep)
    scores = score_matrices(tokens)[name].repeat(samples, 1)[:samples]
    x, weight = routed_to(scores, 4)
    index, offsets, _ = route(x, weight, list(keep), keep_small=list(keep_small), backend=backend)
    small = [expected_selection(scores[b].tolist(), k) for b, k in enumerate(keep_small)]
    large = [expected_selection(scores[b].tolist(), k) for b, k in enumerate(keep)]
    for b, rows in enumerate(index.split(keep)):
        rest = [i for i in large[b] if i not in small[b]]
        assert (rows - b * tokens).tolist() == small[b] + rest, (keep_small[b], keep[b])
    assert offsets.diff().tolist() == list(keep)
    alone = route(x, weight, list(keep_small), backend=backend)[0]
    prefixes = [rows[:k] for rows, k in zip(index.split(keep), keep_small, strict=True)]
    assert torch.equal(torch.cat(prefixes), alone)
