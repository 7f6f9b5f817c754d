"""Random blocks on a GPU, forward and backward, by every backend: within the error budget."""

import pytest
import torch

from tools.checks.blocks import check_mod_block, check_two_bin_block

SEEDS, STEP = 20, 2
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("backend", ["triton", "cuda", "reference", "auto"])
@pytest.mark.parametrize("check", [check_mod_block, check_two_bin_block])
def test_block_is_within_the_error_budget(check, backend, dtype, first):
    for seed in range(first, first + STEP):
        check(seed, dtype, backend, "cuda")
