"""Every operator with kernels of ours, forward and backward, in every dtype: within the error budget."""

import pytest
import torch

from diffratio_kernels._backends import BACKENDS
from tools.checks.operators import OPERATOR_CHECKS, check_operator

SEEDS, STEP = 16, 4
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KERNELS = [(op, name) for op in OPERATOR_CHECKS for name in ("cuda", "triton") if name in BACKENDS[op]]

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("op", "backend"), KERNELS)
def test_operator_is_within_the_error_budget(op, backend, dtype, first):
    for seed in range(first, first + STEP):
        check_operator(op, seed, dtype, backend, "cuda")
