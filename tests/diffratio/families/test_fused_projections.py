"""`fuse_projections` on attentions whose processors do not read the joined product."""

import pytest
import torch

from .test_blocks import assert_same, made, routed, run

TOLERANCE = {"atol": 2e-6, "rtol": 2e-5}


@pytest.mark.parametrize("name", ["cogview4", "glm_image", "cosmos", "allegro", "easyanimate", "motif"])
def test_a_joined_product_that_no_processor_reads_is_not_read(name):
    case = made(name)
    attn = case.block.attn if hasattr(case.block, "attn") else case.block.attn1
    attn.fuse_projections()
    with torch.no_grad():
        attn.to_qkv.weight.zero_()
        wanted = case.parts(case.block(**case.inputs))
        assert_same(case, run(case, routed(case, (10, 10))), wanted, **TOLERANCE)
