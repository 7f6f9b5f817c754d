"""The CUDA C++ row kernels in the simulator, with what families need: rms norms, rows of the modulation for
groups of tokens, norms of branches."""

import pytest
import torch

from diffratio_kernels._backends import kernels
from tools.guards.poison import poisoned_memory
from tools.launchers import rows
from tools.launchers.calls import ALL, typical_call
from tools.launchers.check import check_call, same_bits
from tools.launchers.draw import Draw

pytestmark = pytest.mark.usefixtures("simulated", "instead_of_triton")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPERATORS = ("gather_adaln", "adaln", "gate_residual", "scatter_rescale")
SHARED = ("gather_adaln, groups", "adaln, groups", "gate_residual, normed", "scatter_rescale, mlp, normed")
STEP = 12


@pytest.fixture
def instead_of_triton(monkeypatch):
    """Calls of the launchers' cases go to the CUDA C++ backend, whose functions are the same."""
    monkeypatch.setattr(rows, "kernels", lambda folder, _: kernels(folder, "cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", [0, STEP, 2 * STEP])
@pytest.mark.parametrize("name", OPERATORS)
def test_random_calls_are_within_the_error_budget(name, first, dtype):
    for seed in range(first, first + STEP):

        def drawn(again=0, seed=seed):
            return ALL[name].draw(Draw(seed, dtype, again))

        check_call(name, drawn(), seed, drawn)


def test_the_calls_have_all_of_it():
    calls = [ALL[name].draw(Draw(seed, DTYPES[0])) for name in OPERATORS for seed in range(3 * STEP)]
    kinds = {(call["norm"], call["groups"] is None) for call in calls if len(call["index"]) > 0}
    assert kinds == {(norm, groups) for norm in ("none", "rms", "layer") for groups in (True, False)}
    assert any(call.get("norm_bias") is not None and call["groups"] is not None for call in calls)


@pytest.mark.parametrize("kind", SHARED)
def test_same_bits_under_every_schedule_in_poisoned_memory(simulator, kind):
    operator, arguments = typical_call(kind, torch.float32)
    expected = operator.kernels(**arguments)
    try:
        with poisoned_memory():
            for seed in range(3):
                simulator.seed(seed)
                found = operator.kernels(**arguments)
                assert all(same_bits(found[key], t) for key, t in expected.items())
    finally:
        simulator.seed(0)
