"""The same bits on every run, forward and backward: 50 runs of 30 configurations, with a control."""

from dataclasses import replace

import pytest
import torch

from diffratio_kernels.testing.cases import CASE, operator_calls
from tools.launchers.check import same_bits

RUNS = 50
HALF, SINGLE = (torch.bfloat16, torch.float16), (torch.float32,)
# In fp32 "cuda" leaves attention to torch, whose gradients are not the same on every run.
KERNELS = {"triton": HALF + SINGLE, "cuda": HALF}
CASES = {
    "one count": CASE,
    "counts of their own": replace(CASE, keep=(29, 48), rescale="residual"),
    "no text": replace(CASE, text=None, ragged_text=False, tokens=300, keep=(97,)),
    "one sample": replace(CASE, batch=1, tokens=1024, keep=(308,), heads=3, head_dim=64),
    "many samples": replace(CASE, batch=17, tokens=65, keep=(33,), head_dim=24, rescale="output"),
    "wide": replace(CASE, batch=2, tokens=257, keep=(180,), heads=16, hidden=4608),
}
CONFIGURATIONS = [
    (name, dtype, case) for name, dtypes in KERNELS.items() for dtype in dtypes for case in CASES
]

pytestmark = pytest.mark.gpu


def differing_runs(run, runs=RUNS):
    """How many runs differ from the first in any bit of any result."""
    first = run()
    return sum(not all(same_bits(a, b) for a, b in zip(run(), first, strict=True)) for _ in range(runs - 1))


@pytest.mark.parametrize(("backend", "dtype", "case"), CONFIGURATIONS, ids=str)
def test_every_run_gives_the_same_bits(backend, dtype, case):
    calls = operator_calls(backend, dtype, "cuda", case=CASES[case])
    for op, call in calls.items():
        for name, run in call.runs().items():
            assert differing_runs(run) == 0, (op, name)


def test_there_are_thirty_configurations():
    assert len(CONFIGURATIONS) == 30


def test_the_comparison_sees_sums_by_atomics():
    """A million floats added to 8 cells in whatever order they come, which changes from run to run."""
    values = torch.randn(1 << 20, device="cuda")
    cells = torch.randint(0, 8, values.shape, device="cuda")
    assert differing_runs(lambda: (torch.zeros(8, device="cuda").scatter_add_(0, cells, values),)) > 0
