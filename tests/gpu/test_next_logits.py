"""Logits of the next block on a GPU: what the router gives for the rows as stored."""

from dataclasses import replace

import pytest
import torch

from diffratio_kernels import mod_block, mod_block_next, route
from diffratio_kernels.testing.inputs import ModBlockCase, on_device

pytestmark = pytest.mark.gpu
CASE = ModBlockCase(seed=1, tokens=300, heads=16, head_dim=72, hidden=256, keep=(120, 0), text=None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("implementation", ["cuda", "triton"])
@pytest.mark.parametrize("keep", [(120, 0), (300,), (0,)], ids=str)
def test_they_are_those_of_the_router(keep, implementation, dtype):
    case = replace(CASE, keep=keep, dtype=dtype)
    arguments = on_device(case.arguments(), "cuda")
    weight, bias = torch.randn(1152, device="cuda"), torch.randn(1, device="cuda")
    router = {"next_router_weight": weight, "next_router_bias": bias}
    out, logits = mod_block_next(**arguments, **router, implementation=implementation)
    fresh = route(out, weight, case.full_keep, router_bias=bias, implementation=implementation)[2]
    if implementation == "cuda":
        assert torch.equal(logits, fresh)
    torch.testing.assert_close(logits, fresh, rtol=1e-4, atol=1e-4)
    again = arguments | {"x": out, "router_weight": weight, "router_bias": bias}
    given = mod_block(**again, logits=fresh, implementation=implementation)
    assert torch.equal(given, mod_block(**again, implementation=implementation))
