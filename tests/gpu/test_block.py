"""Random blocks on a GPU, forward and backward, by every implementation: within the error budget."""

import pytest
import torch

from diffratio_kernels.testing.mod_block_check import check_mod_block

SEEDS, STEP = 20, 2
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("implementation", ["triton", "cuda", "reference", "auto"])
def test_block_is_within_the_error_budget(implementation, dtype, first):
    for seed in range(first, first + STEP):
        check_mod_block(seed, dtype, implementation, "cuda")
