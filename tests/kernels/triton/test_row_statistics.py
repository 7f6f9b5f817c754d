"""Rows whose mean is far from zero: a variance as E[x^2] - mean^2, or in fp16, has no digits left there."""

import pytest
import torch

from diffratio_kernels import reference
from diffratio_kernels._backends import kernels
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.types import PackedRows


@pytest.mark.parametrize(("dtype", "mean"), [(torch.float32, 300.0), (torch.float16, 30.0)], ids=str)
def test_statistics_of_rows_far_from_zero(dtype, mean, device):
    x = (torch.randn(1, 8, 72, device=device) + mean).to(dtype)
    rows = PackedRows(torch.arange(8, device=device), 8)
    shift, scale = torch.randn(2, 1, 72, device=device)
    _, normed = kernels("adaln", "triton").gather_adaln(x, rows, shift, scale, 1e-6)
    _, peer = reference.gather_adaln(x, rows, shift, scale, 1e-6)
    _, gold = reference.gather_adaln(x.double(), rows, shift.double(), scale.double(), 1e-6)
    check_budget(f"triton gather_adaln {dtype}: rows far from zero", normed, peer, gold, terms=72)
