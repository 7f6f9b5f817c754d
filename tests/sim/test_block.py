"""The whole block, forward and backward, through the operators on the simulated CUDA kernels."""

from unittest import mock

import pytest
import torch

from diffratio_kernels import _backends, mod_block
from diffratio_kernels.blocks import products
from diffratio_kernels.ops.gate_residual import cuda as gate_residual
from diffratio_kernels.testing.cases import ModBlockCase
from tools.checks.blocks import check_mod_block, check_two_bin_block
from tools.guards.poison import poisoned_memory

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def cuda_on_cpu(simulated, monkeypatch):
    """backend="cuda" takes CPU tensors: its kernels reach the simulator."""
    plain = _backends.unavailable_reason
    monkeypatch.setattr(
        _backends, "unavailable_reason", lambda *args: None if _simulated(*args) else plain(*args)
    )


def _simulated(backend, device_type, dtype=None):
    return backend == "cuda" and device_type == "cpu" and dtype in (None, *DTYPES)


@pytest.mark.parametrize("seed", range(30))
def test_block_is_within_the_error_budget(seed, cuda_on_cpu):
    with poisoned_memory():
        check_mod_block(seed, DTYPES[seed % 3], "cuda")


@pytest.mark.parametrize("seed", range(30))
def test_block_of_two_bins_is_within_the_error_budget(seed, cuda_on_cpu):
    with poisoned_memory():
        check_two_bin_block(seed, DTYPES[seed % 3], "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_products_of_triton_between_cuda_row_steps(dtype, cuda_on_cpu, monkeypatch):
    """As on a GPU whose table prefers them: the out projection finds its residual rows in x."""
    arguments = ModBlockCase(seed=3, dtype=dtype, tokens=20, keep=(9, 4), text=3).arguments()
    expected = mod_block(**arguments, backend="cuda")
    asked = []

    def fuses(run, kernel, *_):
        asked.append(kernel)
        return True

    monkeypatch.setattr(products, "fuses", fuses)
    with poisoned_memory():
        out = mod_block(**arguments, backend="cuda")
    limit = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, expected, rtol=limit, atol=limit)
    assert asked == [*["linear_gate_residual"] * 3, "linear_scatter"]  # the gather asks too


def test_it_is_the_simulator_that_runs(cuda_on_cpu, simulator, monkeypatch):
    gated = mock.Mock(side_effect=gate_residual.gate_residual)
    monkeypatch.setattr(gate_residual, "gate_residual", gated)
    before = simulator.switches()
    mod_block(**ModBlockCase(seed=0).arguments(), backend="cuda")
    assert simulator.switches() > before and gated.call_count == 1  # what crosses to text has no gate
