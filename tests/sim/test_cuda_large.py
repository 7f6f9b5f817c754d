"""Rows that start more than 2^31 elements into a tensor; only the pages that are touched take memory."""

import torch

from diffratio_kernels import reference

WIDTH = 2048
TOKENS = 2**31 // WIDTH + 3


def test_rows_beyond_2_to_the_31_elements(cuda):
    x = torch.empty(1, TOKENS, WIDTH, dtype=torch.float16)
    assert x.numel() > 2**31
    index = torch.tensor([1, TOKENS - 2, TOKENS - 1])
    kept = torch.randn(1, 3, WIDTH).half()
    x[0, index] = kept[0]
    shift, scale, gate = torch.randn(3, 1, WIDTH).unbind(0)
    packed = torch.arange(3)
    rows, normed = cuda.gather_adaln(x, index, shift, scale, 1e-6)
    assert torch.equal(rows, kept[0])
    assert torch.equal(normed, cuda.gather_adaln(kept, packed, shift, scale, 1e-6)[1])

    hidden, branch = torch.randn(2, 3, WIDTH).half().unbind(0)
    logits = torch.randn(1, TOKENS)
    for rescale in ("mlp", "residual"):
        expected = reference.scatter_rescale(
            kept, packed, hidden, branch, gate, logits[:, index], rescale, 1.0
        )
        cuda.scatter_rescale(x, index, hidden, branch, gate, logits, rescale, 1.0, in_place=True)
        torch.testing.assert_close(x[:, index], expected, rtol=2e-3, atol=2e-3)
        x[0, index] = kept[0]
