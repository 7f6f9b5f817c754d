"""`make fuzz`: blocks of one bin and of two against fp64 over many shapes. DIFFRATIO_FUZZ_SEEDS sets how many
(default 1200; a third of it with two bins)."""

import os

import pytest

from tools.checks.blocks import check_mod_block, check_two_bin_block

SEEDS = int(os.environ.get("DIFFRATIO_FUZZ_SEEDS", "1200"))
STEP = 20


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_mod_block_stays_within_the_error_budget(first):
    for seed in range(first, min(first + STEP, SEEDS)):
        check_mod_block(seed)


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(0, SEEDS // 3, STEP))
def test_two_bin_block_stays_within_the_error_budget(first):
    for seed in range(first, min(first + STEP, SEEDS // 3)):
        check_two_bin_block(seed)
