"""Every attention that is installed: equal and unequal samples, self and cross, head_dim 64 to 128."""

import pytest
import torch

from diffratio_kernels import attention, reference
from diffratio_kernels._backends import unavailable_reason
from diffratio_kernels.reference import cu_seqlens_of
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.types import Seqlens

HEADS = 3
LENGTHS = {  # queries and keys of every sample
    "equal": ([70, 70], [70, 70]),
    "unequal": ([1, 130, 64], [1, 130, 64]),
    "cross": ([90, 33], [20, 20]),
    "unequal cross": ([90, 33], [5, 120]),
}
FLAT = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
BACKENDS = ("triton", "sdpa", "cudnn", "varlen", "flash_attn")

pytestmark = pytest.mark.gpu


def run(function, tensors, grad, **options):
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves, **options)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 72, 128])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_within_the_error_budget(backend, lengths, head_dim, dtype):
    queries, keys = LENGTHS[lengths]
    rows = [sum(queries), sum(keys), sum(keys), sum(queries)]
    *tensors, grad = (torch.randn(n, HEADS, head_dim, device="cuda").to(dtype) for n in rows)
    cu_seqlens = (cu_seqlens_of(n, grad.device) for n in (queries, keys))
    seqlens = Seqlens(*cu_seqlens, max(queries), max(keys))
    shared = {name: getattr(seqlens, name) for name in FLAT}
    reason = unavailable_reason(backend, "cuda", dtype)
    if reason is not None:
        with pytest.raises(ValueError, match="is not available"):
            attention(*tensors, **shared, backend=backend)
        return
    try:
        actual = run(attention, tensors, grad, backend=backend, **shared)
    except RuntimeError:
        assert backend == "cudnn"  # which takes some shapes only, and says so
        return
    peer = run(reference.attention, tensors, grad, seqlens=seqlens)
    gold = run(reference.attention, [t.double() for t in tensors], grad, seqlens=seqlens)
    for i, key in enumerate(("out", "d query", "d key", "d value")):
        name = f"attention {backend} {str(dtype).removeprefix('torch.')}: {key}"
        check_budget(name, actual[i], peer[i], gold[i], factor=3 if i else 2, terms=max(rows))
