"""`two_bin_gelu`: w times the GELU of each large row, and 1 - w times that of its small one, if any."""

import pytest
import torch
import torch.nn.functional as F

import diffratio_kernels as dk


@pytest.mark.parametrize(
    ("backend", "dtype"), [("cpu", torch.float64), ("triton", torch.float32), ("reference", torch.float64)]
)
def test_each_row_is_the_blend_of_its_two_bins(backend, dtype):
    weights, pre = torch.tensor([0.3, 1.5], dtype=dtype), torch.randn(5 + 3, 6, dtype=dtype)
    large, small = (torch.tensor(counts, dtype=torch.int32) for counts in ([0, 2, 5], [0, 1, 3]))
    out = dk.two_bin_gelu(pre, weights, large, small, 5, backend=backend)
    inner = F.gelu(pre, approximate="tanh")
    for t, (sample, of_small) in enumerate([(0, 5), (0, None), (1, 6), (1, 7), (1, None)]):
        w = weights[sample]
        rest = 0 if of_small is None else (1 - w) * inner[of_small]
        torch.testing.assert_close(out[t], w * inner[t] + rest)
