"""Which tokens the CUDA C++ keeps, in the simulator: score matrices, both bins at once, every tile size."""

from functools import cache

import pytest
import torch

from diffratio_kernels.ops.cuda import row_map_of
from diffratio_kernels.ops.route import cuda
from diffratio_kernels.reference import cu_seqlens_of, select_tokens
from diffratio_kernels.types import PackedRows
from tools.checks.scores import expected_selection
from tools.checks.scores import score_matrices as draw_score_matrices
from tools.guards.poison import poisoned_memory

pytestmark = pytest.mark.usefixtures("simulated")
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


def select(scores, keep, keep_small=None):
    """The index, into poisoned memory; what comes with it must fit it."""
    with poisoned_memory():
        index, cu_seqlens, row_map = cuda.select(scores, keep, keep_small)
    assert torch.equal(cu_seqlens, cu_seqlens_of(keep, scores.device))
    assert torch.equal(row_map, row_map_of(PackedRows(index, 1), scores.numel()))
    return index


def expected_index(scores, keep):
    """Rows of the flattened [B*N] by plain Python."""
    samples, tokens = scores.shape
    return [b * tokens + i for b in range(samples) for i in expected_selection(scores[b].tolist(), keep[b])]


@pytest.mark.parametrize(("name", "tokens", "keep"), CASES)
def test_kept_tokens_are_those_of_plain_python(simulator, name, tokens, keep):
    """Also with the smaller bin first, and under another order of threads."""
    scores, kept = score_matrices(tokens)[name], [keep, keep]
    assert select(scores, kept).tolist() == expected_index(scores, kept)
    small = [keep // 2, min(keep, 1)]
    bins = select_tokens(scores, kept, small)[0]
    assert torch.equal(select(scores, kept, small), bins)
    simulator.seed(1 + len(name) + keep)
    try:
        assert torch.equal(select(scores, kept, small), bins)
    finally:
        simulator.seed(0)


def test_there_are_enough_cases():
    assert len(CASES) >= 240


@pytest.mark.parametrize("name", ["random", "all equal", "bf16 ties", "everything"])
@pytest.mark.parametrize(("tokens", "keep"), LARGE)
def test_many_tokens(tokens, keep, name):
    scores, kept = score_matrices(tokens)[name], [keep, keep - 7]
    assert torch.equal(select(scores, kept), select_tokens(scores, kept)[0])
    small = [keep // 3, 0]
    assert torch.equal(select(scores, kept, small), select_tokens(scores, kept, small)[0])


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", ["random", "all equal"])
def test_many_tokens_under_every_schedule(simulator, name, seed):
    """More tiles than one: what a tile leaves in shared memory is read before the next one writes."""
    scores, kept = score_matrices(33000)[name], [9900, 9893]
    simulator.seed(seed)
    try:
        chosen = select(scores, kept)
    finally:
        simulator.seed(0)
    assert torch.equal(chosen, select_tokens(scores, kept)[0])


@pytest.mark.parametrize("name", score_matrices(1))
def test_samples_keep_counts_of_their_own(name):
    scores, keep = score_matrices(33)[name].repeat(3, 1), [0, 33, 7, 20, 33, 1]
    assert select(scores, keep).tolist() == expected_index(scores, keep)
    for small in ([0, 33, 7, 20, 33, 1], [0, 0, 0, 0, 0, 0], [0, 5, 6, 1, 32, 1]):
        assert torch.equal(select(scores, keep, small), select_tokens(scores, keep, small)[0])


@pytest.mark.parametrize("keep", [[0, 0], [7, 7], [33, 33], [0, 33], [20, 7]], ids=str)
@pytest.mark.parametrize("name", score_matrices(1))
def test_cu_seqlens_and_the_row_map_come_with_the_selection(simulator, name, keep):
    scores = score_matrices(33)[name]
    for seed in (0, 3):
        simulator.seed(seed)
        try:
            for small in (None, [k // 2 for k in keep]):
                assert torch.equal(select(scores, keep, small), select_tokens(scores, keep, small)[0])
        finally:
            simulator.seed(0)


@pytest.mark.parametrize(("tokens", "keep"), LARGE)
def test_many_tokens_in_equal_and_unequal_counts(tokens, keep):
    scores = score_matrices(tokens)["bf16 ties"]
    for kept, small in (([keep, keep], None), ([keep, keep - 7], [keep // 3, 0])):
        assert torch.equal(select(scores, kept, small), select_tokens(scores, kept, small)[0])


def test_no_samples():
    assert select(torch.empty(0, 5), []).shape == (0,)
