"""Rows that start more than 2^31 elements into a tensor; only the pages that are touched take memory."""

import pytest
import torch

from diffratio_kernels import reference
from diffratio_kernels.ops.adaln import cuda as adaln
from diffratio_kernels.ops.scatter_rescale import cuda as scatter
from diffratio_kernels.types import Finish, PackedRows, Rescale

WIDTH = 2048
TOKENS = 2**31 // WIDTH + 3


@pytest.mark.usefixtures("simulated")
def test_rows_beyond_2_to_the_31_elements():
    x = torch.empty(1, TOKENS, WIDTH, dtype=torch.float16)
    assert x.numel() > 2**31
    index = torch.tensor([1, TOKENS - 2, TOKENS - 1])
    kept = torch.randn(1, 3, WIDTH).half()
    x[0, index] = kept[0]
    shift, scale, gate = torch.randn(3, 1, WIDTH).unbind(0)
    large, small = PackedRows(index, TOKENS), PackedRows(torch.arange(3), 3)
    rows, normed = adaln.gather_adaln(x, large, shift, scale, 1e-6)
    assert torch.equal(rows, kept[0])
    assert torch.equal(normed, adaln.gather_adaln(kept, small, shift, scale, 1e-6)[1])

    hidden, branch = torch.randn(2, 3, WIDTH).half().unbind(0)
    logits = torch.randn(1, TOKENS)
    for rescale in ("mlp", "residual"):
        how = Rescale(rescale)
        few = Finish(kept, small, hidden, branch, gate, logits[:, index], how)
        expected = reference.scatter_rescale(few)
        scatter.scatter_rescale_(Finish(x, large, hidden, branch, gate, logits, how))
        torch.testing.assert_close(x[:, index], expected, rtol=2e-3, atol=2e-3)
        x[0, index] = kept[0]
