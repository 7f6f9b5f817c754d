"""`mlp` by every backend that takes the dtype, without a gradient: within the error budget."""

import pytest
import torch

from diffratio_kernels import mlp
from diffratio_kernels._backends import BACKENDS, unavailable_reason
from diffratio_kernels.testing.budget import check_budget

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 33, 1000])
@pytest.mark.parametrize("backend", ["auto", *BACKENDS["mlp"]])
def test_mlp_is_within_the_error_budget(backend, rows, dtype):
    width, hidden = 136, 544
    shapes = (rows, width), (hidden, width), (hidden,), (width, hidden), (width,)
    scales = 1, width**-0.5, 1, hidden**-0.5, 1
    drawn = [
        (torch.randn(shape, device="cuda") * scale).to(dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    reason = None if backend == "auto" else unavailable_reason(backend, "cuda", dtype)
    if reason is not None:
        with pytest.raises(ValueError, match="is not available"):
            mlp(*drawn, backend=backend)
        return
    actual, peer = (mlp(*drawn, backend=name) for name in (backend, "reference"))
    gold = mlp(*(t.double() for t in drawn), backend="reference")
    name = f"mlp {backend} {str(dtype).removeprefix('torch.')}: out"
    check_budget(name, actual, peer, gold, terms=hidden)
