"""A scale of the caller's own reaches the scores and every gradient."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.budget import gradients


@pytest.mark.parametrize("implementation", ["triton", "sdpa"])
def test_scale_is_that_of_the_reference(implementation):
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    tensors = {name: torch.randn(5, 2, 16) for name in ("query", "key", "value")}
    packing = {"query_offsets": offsets, "key_offsets": offsets, "max_query": 5, "max_key": 5, "scale": 0.2}
    (out, grads), (expected, expected_grads) = (
        gradients(dk.attention, tensors | packing | {"implementation": name}, seed=0)
        for name in (implementation, "reference")
    )
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-4, atol=1e-5)
