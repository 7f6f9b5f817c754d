"""A block of the C++ kernels, forward and backward, within its error budget on every instruction set."""

import pytest
import torch

from tools.checks.blocks import check_mod_block


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_block_is_within_the_error_budget(seed, dtype, every_instruction_set):
    check_mod_block(seed, dtype, "cpu")
