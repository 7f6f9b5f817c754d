"""Random blocks, forward and backward, within twice the error of eager PyTorch in the same dtype."""

import pytest
import torch

from diffratio_kernels.testing.interpreter import guarded
from diffratio_kernels.testing.mod_block_check import check_mod_block

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("seed", range(60))
def test_block_is_within_the_error_budget(seed, dtype):
    check_mod_block(seed, dtype)


@pytest.mark.parametrize("seed", range(24))
def test_block_of_triton_kernels_is_within_the_error_budget(seed):
    """On the CPU in the interpreter, whose bfloat16 is wrong."""
    with guarded(seed):
        check_mod_block(seed, [torch.float32, torch.float16][seed % 2], "triton", DEVICE)
