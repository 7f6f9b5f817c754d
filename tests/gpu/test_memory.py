"""Memory: nothing stays behind after 200 iterations; the peak of a block is what its buffers add up to."""

from dataclasses import replace

import pytest
import torch

from diffratio.evaluation.memory import peak_bytes
from diffratio_kernels.testing.cases import CASE, ModBlockCase, operator_calls
from tools.launchers.calls import kernel_device

ITERATIONS, WARM_UP = 200, 10
SMALL = ModBlockCase(seed=0, batch=2, tokens=600, heads=8, head_dim=64, hidden=2048, keep=(480,))
LARGE = replace(SMALL, batch=16, tokens=4096, heads=16, head_dim=72, hidden=4608, keep=(3277,), text=120)
GPU = pytest.mark.gpu


@pytest.mark.gpu
@pytest.mark.parametrize("keep", [(29,), (29, 13)], ids=str)
@pytest.mark.parametrize("backend", ["cuda", "triton", "auto"])
def test_two_hundred_iterations_leave_nothing_behind(backend, keep):
    calls = operator_calls(backend, torch.bfloat16, "cuda", case=replace(CASE, keep=keep))
    for op, call in calls.items():
        for name, run in call.runs().items():
            for i in range(ITERATIONS + WARM_UP):
                run()
                if i == WARM_UP - 1:
                    torch.cuda.synchronize()
                    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
            torch.cuda.synchronize()
            assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before, (op, name)


def block_peak(case):
    """Bytes of `mod_block` without gradients, in rows of D elements.

    While the MLP runs: the residual stream and its normed copy, one row each, and the products' shared buffer
    of 4. At the end: [B, N, D], the finished rows and the branch. Beside them, all the time: logits (fp32),
    places (int32) and index (int64).
    """
    tokens, kept = case.batch * case.tokens, sum(case.full_keep)
    row = case.heads * case.head_dim * case.dtype.itemsize
    return max(6 * kept, tokens + 2 * kept) * row + 8 * tokens + 8 * kept


BLOCKS = [
    pytest.param("cuda", LARGE, torch.bfloat16, id="cuda", marks=GPU),
    pytest.param("triton", LARGE, torch.bfloat16, id="triton", marks=GPU),
]
if kernel_device() == "cpu":
    BLOCKS.append(pytest.param("cpu", SMALL, torch.float32, id="cpu"))


@pytest.mark.parametrize(("backend", "case", "dtype"), BLOCKS)
def test_the_peak_of_a_block_is_what_its_buffers_add_up_to(backend, case, dtype):
    device, case = kernel_device(), replace(case, dtype=dtype)
    call = operator_calls(backend, dtype, device, case=case)["mod_block"]
    call.forward()
    assert abs(peak_bytes(call.forward, device) / block_peak(case) - 1) <= 0.05
