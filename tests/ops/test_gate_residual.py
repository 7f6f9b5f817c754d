"""`gate_residual`: hidden + gate * branch with the gate of each row's own sample."""

import pytest
import torch

import diffratio_kernels as dk


@pytest.mark.parametrize(("backend", "dtype"), [("triton", torch.float32), ("reference", torch.float64)])
def test_each_row_has_the_gate_of_its_sample(backend, dtype):
    hidden, branch = torch.randn(2, 4, 8, dtype=dtype)
    gate, index = torch.randn(2, 8, dtype=dtype), torch.tensor([4, 0, 7, 9])
    out = dk.gate_residual(hidden, branch, gate, index, 5, backend=backend)
    for t, i in enumerate(index.tolist()):
        torch.testing.assert_close(out[t], hidden[t] + gate[i // 5] * branch[t])
