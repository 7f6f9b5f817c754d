"""Every attention that is installed: equal and unequal samples, self and cross, head_dim 64 to 128."""

import pytest
import torch

from diffratio_kernels import attention, reference
from diffratio_kernels.ops import dispatch
from diffratio_kernels.reference import packed_offsets
from diffratio_kernels.testing.budget import check_budget

HEADS = 3
LENGTHS = {  # queries and keys of every sample
    "equal": ([70, 70], [70, 70]),
    "unequal": ([1, 130, 64], [1, 130, 64]),
    "cross": ([90, 33], [20, 20]),
    "unequal cross": ([90, 33], [5, 120]),
}
BACKENDS = ("triton", "sdpa", "cudnn", "varlen", "flash_attn")

pytestmark = pytest.mark.gpu


def run(function, tensors, grad, **options):
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves, **options)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 72, 128])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("implementation", BACKENDS)
def test_attention_is_within_the_error_budget(implementation, lengths, head_dim, dtype):
    queries, keys = LENGTHS[lengths]
    rows = [sum(queries), sum(keys), sum(keys), sum(queries)]
    *tensors, grad = (torch.randn(n, HEADS, head_dim, device="cuda").to(dtype) for n in rows)
    offsets = [packed_offsets(n, grad.device) for n in (queries, keys)]
    shared = dict(zip(("query_offsets", "key_offsets"), offsets, strict=True))
    shared |= {"max_query": max(queries), "max_key": max(keys)}
    reason = dispatch.why_not(implementation, "cuda", dtype)
    if reason is not None:
        with pytest.raises(ValueError, match="is not available"):
            attention(*tensors, **shared, implementation=implementation)
        return
    try:
        actual = run(attention, tensors, grad, implementation=implementation, **shared)
    except RuntimeError:
        assert implementation == "cudnn"  # which takes some shapes only, and says so
        return
    peer = run(reference.attention, tensors, grad, **shared)
    gold = run(reference.attention, [t.double() for t in tensors], grad, **shared)
    for i, key in enumerate(("out", "d query", "d key", "d value")):
        name = f"attention {implementation} {str(dtype).removeprefix('torch.')}: {key}"
        check_budget(name, actual[i], peer[i], gold[i], factor=3 if i else 2, terms=max(rows))
