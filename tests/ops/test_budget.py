"""Random blocks, forward and backward, within twice the error of eager PyTorch in the same dtype."""

import pytest
import torch

from diffratio_kernels.testing.mod_block_check import check_mod_block

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("seed", range(60))
def test_block_is_within_the_error_budget(seed, dtype):
    check_mod_block(seed, dtype)
