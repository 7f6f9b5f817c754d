"""Random blocks, forward and backward, within twice the error of eager PyTorch in the same dtype."""

import pytest
import torch

from tools.checks.blocks import check_mod_block, check_two_bin_block
from tools.checks.random_cases import random_two_bin_case
from tools.guards.interpreter import guarded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TWO_BIN_SEEDS = 40


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("seed", range(60))
def test_block_is_within_the_error_budget(seed, dtype):
    check_mod_block(seed, dtype)


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.fuzz] * (n >= 12)) for n in range(24)])
def test_block_of_triton_kernels_is_within_the_error_budget(seed):
    """On the CPU in the interpreter, whose bfloat16 is wrong."""
    with guarded(seed):
        check_mod_block(seed, [torch.float32, torch.float16][seed % 2], "triton", DEVICE)


@pytest.mark.parametrize("seed", range(TWO_BIN_SEEDS))
def test_two_bins_are_within_the_error_budget_of_two_passes(seed):
    check_two_bin_block(seed)


@pytest.mark.parametrize("seed", range(0, TWO_BIN_SEEDS, 5))
def test_two_bins_of_the_reference_steps_are_within_it_too(seed):
    check_two_bin_block(seed, backend="reference")


def test_drawn_bins_hold_every_edge_case():
    cases = [random_two_bin_case(seed) for seed in range(TWO_BIN_SEEDS)]
    bins = {
        (small, large, case.tokens)
        for case in cases
        for small, large in zip(case.full_keep_small, case.full_keep, strict=True)
    }
    assert any(0 < small == large < tokens for small, large, tokens in bins)
    assert any(0 < small < large == tokens for small, large, tokens in bins)
    assert any(0 == small < large for small, large, _ in bins) and any(large == 0 for _, large, _ in bins)
    assert all(0 <= small <= large for small, large, _ in bins)
    assert {len(set(case.full_keep_small)) for case in cases} >= {1, 2, 3}
    weights = [case.weight_large for case in cases]
    assert {-1.5, 0.0, 1.0, 2.5} < {w for each in weights for w in each}
    assert {(0.0, 0.0), (1.0, 1.0)} <= set(weights)
    assert {case.rescale for case in cases} == {"mlp", "residual", "output", "none"}
    assert {case.dtype for case in cases} == set(DTYPES)
