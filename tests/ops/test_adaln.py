"""`gather_adaln` and `adaln`: torch's layer norm of each kept row, with the modulation of its own sample."""

import pytest
import torch
import torch.nn.functional as F

import diffratio_kernels as dk


@pytest.mark.parametrize(
    ("backend", "dtype"), [("cpu", torch.float64), ("triton", torch.float32), ("reference", torch.float64)]
)
def test_each_row_has_the_modulation_of_its_sample(backend, dtype):
    x, index = torch.randn(2, 5, 8, dtype=dtype), torch.tensor([4, 0, 7, 9])
    shift, scale = torch.randn(2, 2, 8, dtype=dtype)
    rows, normed = dk.gather_adaln(x, index, shift, scale, 0.1, backend=backend)
    for t, i in enumerate(index.tolist()):
        row, sample = x.flatten(0, 1)[i], i // 5
        expected = F.layer_norm(row, (8,), eps=0.1) * (1 + scale[sample]) + shift[sample]
        assert torch.equal(rows[t], row)
        torch.testing.assert_close(normed[t], expected)
    assert torch.equal(dk.adaln(rows, index, 5, shift, scale, 0.1, backend=backend), normed)
