"""Which tokens the CUDA C++ keeps, in the simulator: score matrices, both bins at once, every tile size."""

from functools import cache

import pytest
import torch

from diffratio_kernels.reference import packed_offsets, select_tokens
from diffratio_kernels.testing.poison import poisoned_memory
from diffratio_kernels.testing.scores import expected_selection
from diffratio_kernels.testing.scores import score_matrices as draw_score_matrices

score_matrices = cache(draw_score_matrices)

CASES = [
    pytest.param(name, tokens, keep, id=f"{name}-{keep} of {tokens}")
    for tokens in (1, 7, 64, 257)  # up to 4 keys a thread
    for name in score_matrices(1)
    for keep in sorted({0, 1, tokens // 2, tokens - 1, tokens})
]
LARGE = [
    (1024, 512),
    (5000, 2500),  # 16 keys a thread
    (20000, 14000),  # 32 keys a thread
    (33000, 9900),  # three tiles, read again in every pass
]


def select(cuda, scores, keep, keep_small=None):
    """topk_select as `reference.select_tokens` is called, into poisoned memory."""
    offsets = packed_offsets(keep, scores.device)
    small = None if keep_small is None else torch.tensor(keep_small, dtype=torch.int32)
    with poisoned_memory():
        return cuda.topk_select(scores, offsets, sum(keep), small)


def select_with_places(cuda, scores, keep, keep_small=None):
    """The same by topk_places: index, offsets and places."""
    offsets = packed_offsets(keep, scores.device) if len(set(keep)) > 1 else None
    small = None if keep_small is None else torch.tensor(keep_small, dtype=torch.int32)
    with poisoned_memory():
        return cuda.topk_places(scores, keep, offsets, small)


def assert_places(cuda, scores, keep, keep_small=None):
    index, offsets, place = select_with_places(cuda, scores, keep, keep_small)
    assert torch.equal(index, select(cuda, scores, keep, keep_small))
    assert torch.equal(offsets, packed_offsets(keep, scores.device))
    assert torch.equal(place, cuda.row_places(index, scores.numel()))


def expected_index(scores, keep):
    """Rows of the flattened [B*N] by plain Python."""
    samples, tokens = scores.shape
    return [b * tokens + i for b in range(samples) for i in expected_selection(scores[b].tolist(), keep[b])]


@pytest.mark.parametrize(("name", "tokens", "keep"), CASES)
def test_kept_tokens_are_those_of_plain_python(cuda, simulator, name, tokens, keep):
    """Also with the smaller bin first, and under another order of threads."""
    scores, kept = score_matrices(tokens)[name], [keep, keep]
    assert select(cuda, scores, kept).tolist() == expected_index(scores, kept)
    small = [keep // 2, min(keep, 1)]
    bins = select_tokens(scores, kept, small)[0]
    assert torch.equal(select(cuda, scores, kept, small), bins)
    simulator.seed(1 + len(name) + keep)
    try:
        assert torch.equal(select(cuda, scores, kept, small), bins)
    finally:
        simulator.seed(0)


def test_there_are_enough_cases():
    assert len(CASES) >= 240


@pytest.mark.parametrize("name", ["random", "all equal", "bf16 ties", "everything"])
@pytest.mark.parametrize(("tokens", "keep"), LARGE)
def test_many_tokens(cuda, tokens, keep, name):
    scores, kept = score_matrices(tokens)[name], [keep, keep - 7]
    assert torch.equal(select(cuda, scores, kept), select_tokens(scores, kept)[0])
    small = [keep // 3, 0]
    assert torch.equal(select(cuda, scores, kept, small), select_tokens(scores, kept, small)[0])


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", ["random", "all equal"])
def test_many_tokens_under_every_schedule(cuda, simulator, name, seed):
    """More tiles than one: what a tile leaves in shared memory is read before the next one writes."""
    scores, kept = score_matrices(33000)[name], [9900, 9893]
    simulator.seed(seed)
    try:
        chosen = select(cuda, scores, kept)
    finally:
        simulator.seed(0)
    assert torch.equal(chosen, select_tokens(scores, kept)[0])


@pytest.mark.parametrize("name", score_matrices(1))
def test_samples_keep_counts_of_their_own(cuda, name):
    scores, keep = score_matrices(33)[name].repeat(3, 1), [0, 33, 7, 20, 33, 1]
    assert select(cuda, scores, keep).tolist() == expected_index(scores, keep)
    for small in ([0, 33, 7, 20, 33, 1], [0, 0, 0, 0, 0, 0], [0, 5, 6, 1, 32, 1]):
        assert torch.equal(select(cuda, scores, keep, small), select_tokens(scores, keep, small)[0])


@pytest.mark.parametrize("keep", [[0, 0], [7, 7], [33, 33], [0, 33], [20, 7]], ids=str)
@pytest.mark.parametrize("name", score_matrices(1))
def test_offsets_and_places_come_with_the_selection(cuda, simulator, name, keep):
    scores = score_matrices(33)[name]
    for seed in (0, 3):
        simulator.seed(seed)
        try:
            for small in (None, [k // 2 for k in keep]):
                assert_places(cuda, scores, keep, small)
        finally:
            simulator.seed(0)


@pytest.mark.parametrize(("tokens", "keep"), LARGE)
def test_places_of_many_tokens(cuda, tokens, keep):
    for kept, small in (([keep, keep], None), ([keep, keep - 7], [keep // 3, 0])):
        assert_places(cuda, score_matrices(tokens)["bf16 ties"], kept, small)


def test_no_samples(cuda):
    assert select(cuda, torch.empty(0, 5), []).shape == (0,)
