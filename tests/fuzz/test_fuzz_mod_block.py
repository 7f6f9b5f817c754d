"""`make fuzz`: mod_block against fp64 over many shapes. DIFFRATIO_FUZZ_SEEDS sets how many (default 1200)."""

import os

import pytest

from diffratio_kernels.testing.mod_block_check import check_mod_block

SEEDS = int(os.environ.get("DIFFRATIO_FUZZ_SEEDS", "1200"))
STEP = 20


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_mod_block_stays_within_the_error_budget(first):
    for seed in range(first, min(first + STEP, SEEDS)):
        check_mod_block(seed)
