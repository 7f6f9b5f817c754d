"""Which tokens are kept on a GPU, for every score matrix that breaks a top-k: those of the reference."""

from functools import cache

import pytest
import torch

from diffratio_kernels import route
from diffratio_kernels._backends import kernels
from diffratio_kernels._triton.launch import row_map_of
from diffratio_kernels.reference import cu_seqlens_of, select_tokens
from diffratio_kernels.types import PackedRows
from tools.checks.scores import routed_to
from tools.checks.scores import score_matrices as draw_score_matrices

score_matrices = cache(draw_score_matrices)

BACKENDS = ("cuda", "triton")
NAMES = tuple(score_matrices(1))
SIZES = (1, 7, 64, 257, 1024, 4096, 4097, 32768)

pytestmark = pytest.mark.gpu


def selections(name):
    """Scores of two samples, and how many to keep: the ends of the range, one beside each, the middle."""
    for tokens in SIZES:
        for keep in ([0, tokens], [1, tokens - 1], [tokens // 2, -(-tokens // 3)]):
            yield score_matrices(tokens)[name], keep


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_routed_tokens_are_those_of_the_reference(backend, name):
    for scores, keep in selections(name):
        x, weight = (t.cuda() for t in routed_to(scores, 8))
        index, offsets, logits = route(x, weight, keep, backend=backend)
        expected, expected_offsets = select_tokens(scores, keep)
        assert torch.equal(logits.cpu().nan_to_num(7), scores.nan_to_num(7)), scores.shape
        assert torch.equal(index.cpu(), expected), (scores.shape, keep)
        assert torch.equal(offsets.cpu(), expected_offsets), keep


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_the_small_bin_come_first(backend, name):
    """Without the product before it, that makes every zero +0."""
    for scores, keep in selections(name):
        small = [k // 2 for k in keep]
        for counts_small in (small, None):
            index, _, _ = kernels("route", backend).select(scores.cuda(), keep, counts_small)
            expected, _ = select_tokens(scores, keep, counts_small)
            assert torch.equal(index.cpu(), expected), (scores.shape, keep)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_cu_seqlens_and_the_row_map_come_with_the_selection(backend, name):
    for scores, keep in selections(name):
        for kept in (keep, keep[:1] * 2):
            index, cu_seqlens, row_map = kernels("route", backend).select(scores.cuda(), kept)
            assert torch.equal(index.cpu(), select_tokens(scores, kept)[0]), (scores.shape, kept)
            assert torch.equal(cu_seqlens, cu_seqlens_of(kept, torch.device("cuda"))), kept
            expected = row_map_of(PackedRows(index, 1), scores.numel())
            assert torch.equal(row_map, expected), (scores.shape, kept)
