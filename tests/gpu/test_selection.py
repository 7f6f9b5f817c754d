"""Which tokens are kept on a GPU, for every score matrix that breaks a top-k: those of the reference."""

from functools import cache

import pytest
import torch

from diffratio_kernels import route
from diffratio_kernels.kernels import cuda
from diffratio_kernels.kernels.triton import launchers as triton
from diffratio_kernels.reference import packed_offsets, select_tokens
from diffratio_kernels.testing.scores import routed_to
from diffratio_kernels.testing.scores import score_matrices as draw_score_matrices

score_matrices = cache(draw_score_matrices)

LAUNCHERS = {"cuda": cuda, "triton": triton}
NAMES = tuple(score_matrices(1))
SIZES = (1, 7, 64, 257, 1024, 4096, 4097, 32768)

pytestmark = pytest.mark.gpu


def selections(name):
    """Scores of two samples, and how many to keep: the ends of the range, one beside each, the middle."""
    for tokens in SIZES:
        for keep in ([0, tokens], [1, tokens - 1], [tokens // 2, -(-tokens // 3)]):
            yield score_matrices(tokens)[name], keep


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("implementation", LAUNCHERS)
def test_routed_tokens_are_those_of_the_reference(implementation, name):
    for scores, keep in selections(name):
        x, weight = (t.cuda() for t in routed_to(scores, 8))
        index, offsets, logits = route(x, weight, keep, implementation=implementation)
        expected, expected_offsets = select_tokens(scores, keep)
        assert torch.equal(logits.cpu().nan_to_num(7), scores.nan_to_num(7)), scores.shape
        assert torch.equal(index.cpu(), expected), (scores.shape, keep)
        assert torch.equal(offsets.cpu(), expected_offsets), keep


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("implementation", LAUNCHERS)
def test_rows_of_the_small_bin_come_first(implementation, name):
    """Without the product before it, that makes every zero +0."""
    for scores, keep in selections(name):
        small = [k // 2 for k in keep]
        expected, offsets = select_tokens(scores, keep, small)
        keep_small = torch.tensor(small, dtype=torch.int32, device="cuda")
        index = LAUNCHERS[implementation].topk_select(scores.cuda(), offsets.cuda(), sum(keep), keep_small)
        assert torch.equal(index.cpu(), expected), (scores.shape, keep)
        offsets = packed_offsets(keep, torch.device("cuda"))
        index = LAUNCHERS[implementation].topk_select(scores.cuda(), offsets, sum(keep))
        assert torch.equal(index.cpu(), select_tokens(scores, keep)[0]), (scores.shape, keep)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("implementation", LAUNCHERS)
def test_offsets_and_places_come_with_the_selection(implementation, name):
    kernels = LAUNCHERS[implementation]
    for scores, keep in selections(name):
        for kept in (keep, keep[:1] * 2):
            given = packed_offsets(kept, torch.device("cuda"))
            index, offsets, place = kernels.topk_places(
                scores.cuda(), kept, given if len(set(kept)) > 1 else None
            )
            assert torch.equal(index.cpu(), select_tokens(scores, kept)[0]), (scores.shape, kept)
            assert torch.equal(offsets, given), kept
            assert torch.equal(place, kernels.row_places(index, scores.numel())), (scores.shape, kept)
