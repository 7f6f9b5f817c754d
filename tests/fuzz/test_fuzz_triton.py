"""`make fuzz`: Triton launchers over more seeds than the normal suite. DIFFRATIO_FUZZ_SEEDS sets how many."""

import os

import pytest

from tools.launchers.calls import kernel_device
from tools.launchers.check import check_kernels

FIRST = 320
"""Those before are in the normal suite."""
SEEDS = int(os.environ.get("DIFFRATIO_FUZZ_SEEDS", "1200"))
STEP = 20


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, STEP))
def test_launchers_stay_within_the_error_budget(first):
    for seed in range(first, min(first + STEP, FIRST + SEEDS)):
        check_kernels(seed, kernel_device())


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(90, 90 + SEEDS // 2, STEP))
def test_launchers_of_two_bins_stay_within_the_error_budget(first):
    for seed in range(first, min(first + STEP, 90 + SEEDS // 2)):
        check_kernels(seed, kernel_device(), family="two bins")


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(80, 80 + SEEDS // 4, STEP))
def test_products_stay_within_the_error_budget(first):
    for seed in range(first, min(first + STEP, 80 + SEEDS // 4)):
        check_kernels(seed, kernel_device(), family="products")
