"""Which tokens the Triton kernel keeps, for every score matrix that breaks a top-k, in one bin and in two."""

from functools import cache

import pytest
import torch

from diffratio_kernels import _native
from diffratio_kernels._backends import kernels
from diffratio_kernels._triton.launch import row_map_of
from diffratio_kernels.reference import cu_seqlens_of, select_tokens
from diffratio_kernels.types import PackedRows
from tools.checks.scores import expected_selection
from tools.checks.scores import score_matrices as draw_score_matrices
from tools.guards.interpreter import guarded

score_matrices = cache(draw_score_matrices)

SIZES = (1, 2, 3, 7, 31, 64, 100, 255, 256, 257, 300, 1000, 1024)
LARGE = (4096, 4097, 8192, 32768)
NAMES = tuple(score_matrices(1))


def select(scores, keep, device, small=None):
    return kernels("route", "triton").select(scores.to(device), keep, small)[0].tolist()


def expected(scores, keep):
    tokens = scores.shape[1]
    return [b * tokens + i for b, k in enumerate(keep) for i in expected_selection(scores[b].tolist(), k)]


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_kept_tokens_are_those_of_plain_python(name, tokens, device):
    """The middle of the order, and in turn one of its ends."""
    scores = score_matrices(tokens)[name]
    ends = 0, 1, tokens - 1, tokens, max(tokens // 3, 1)
    keep = [tokens // 2, ends[(NAMES.index(name) + tokens) % len(ends)]]
    index = select(scores, keep, device)
    assert index == expected(scores, keep)
    if _native.unavailable is None:
        assert index == kernels("route", "cpu").select(scores, keep)[0].tolist()


@pytest.mark.parametrize("keep", [[0, 64], [1, 63], [64, 0], [21, 50]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_tokens_is_kept(name, keep, device):
    scores = score_matrices(64)[name]
    assert select(scores, keep, device) == expected(scores, keep)


@pytest.mark.parametrize("tokens", LARGE)
@pytest.mark.parametrize("name", ["bf16 ties", "signed zeros", "everything", "descending"])
def test_many_tokens_need_several_blocks(name, tokens, device):
    scores = score_matrices(tokens)[name]
    keep = [tokens // 2, 3 if tokens > 8000 else tokens - 1]
    assert select(scores, keep, device) == expected(scores, keep)


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_the_small_bin_come_first(name, device):
    scores = score_matrices(300)[name].repeat(4, 1)[:7]
    keep, small = [300, 150, 150, 0, 300, 299, 20], [0, 150, 100, 0, 300, 100, 1]
    index, _ = select_tokens(scores, keep, small)
    assert select(scores, keep, device, small) == index.tolist()


@pytest.mark.parametrize(("keep", "small"), [([1, 1, 0], [1, 0, 0]), ([2, 1, 2], [1, 1, 2])], ids=str)
def test_two_bins_of_few_tokens(keep, small, device):
    scores = torch.tensor([[0.0, -0.0], [float("nan"), -float("inf")], [1.0, 2.0]])[:, : max(keep)]
    index, _ = select_tokens(scores, keep, small)
    assert select(scores, keep, device, small) == index.tolist()


@pytest.mark.parametrize(
    ("tokens", "keep"),
    [(1, [1, 1]), (300, [0, 0]), (300, [1, 1]), (300, [300, 300]), (300, [20, 150]), (4097, [150, 150])],
    ids=str,
)
def test_cu_seqlens_and_the_row_map_come_with_the_selection(tokens, keep, device):
    """Into poisoned memory, by programs in any order."""
    scores = score_matrices(tokens)["everything"].to(device)
    for small in (None, [k // 2 for k in keep]):
        with guarded(seed=tokens):
            index, cu_seqlens, row_map = kernels("route", "triton").select(scores, keep, small)
        assert torch.equal(index.cpu(), select_tokens(scores.cpu(), keep, small)[0])
        assert torch.equal(cu_seqlens, cu_seqlens_of(keep, scores.device))
        assert torch.equal(row_map, row_map_of(PackedRows(index, 1), scores.numel()))


def test_there_are_enough_matrices():
    assert len(NAMES) * len(SIZES) >= 240
