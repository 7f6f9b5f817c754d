"""`mlp` by every implementation that takes the dtype, without a gradient: within the error budget."""

import pytest
import torch

from diffratio_kernels import mlp
from diffratio_kernels.ops import IMPLEMENTATIONS
from diffratio_kernels.ops.dispatch import why_not
from diffratio_kernels.testing.budget import check_budget

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 33, 1000])
@pytest.mark.parametrize("implementation", ["auto", *IMPLEMENTATIONS["mlp"]])
def test_mlp_is_within_the_error_budget(implementation, rows, dtype):
    width, hidden = 136, 544
    shapes = (rows, width), (hidden, width), (hidden,), (width, hidden), (width,)
    scales = 1, width**-0.5, 1, hidden**-0.5, 1
    drawn = [
        (torch.randn(shape, device="cuda") * scale).to(dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    reason = None if implementation == "auto" else why_not(implementation, "cuda", dtype)
    if reason is not None:
        with pytest.raises(ValueError, match="is not available"):
            mlp(*drawn, implementation=implementation)
        return
    actual, peer = (mlp(*drawn, implementation=name) for name in (implementation, "torch"))
    gold = mlp(*(t.double() for t in drawn), implementation="torch")
    name = f"mlp {implementation} {str(dtype).removeprefix('torch.')}: out"
    check_budget(name, actual, peer, gold, terms=hidden)
