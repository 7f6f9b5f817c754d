"""Attention of two bins on the CPU: one pass over the keys is two passes, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from diffratio_kernels import reference, two_bin_attention
from diffratio_kernels.ops.two_bin_attention import sdpa
from diffratio_kernels.types import Nested

CPU = torch.device("cpu")
MIXES = {
    "equal samples": ([9, 9, 9], [4, 4, 4]),
    "own counts": ([7, 7, 5, 11], [4, 4, 2, 10]),
    "equal bins": ([6, 6], [6, 6]),
    "nothing small": ([6, 5], [0, 0]),
    "all of it": ([7, 7, 0, 5, 8], [3, 7, 0, 0, 1]),
    "nothing": ([0, 0], [0, 0]),
}


def cu_seqlens_of(counts):
    return reference.cu_seqlens_of(counts, CPU)


def two_passes(query, key, value, large, small):
    """Sample by sample, bin by bin."""
    outs = []
    for counts in (large, small):
        for *own, kept in zip(*(t.split(large) for t in (query, key, value)), counts, strict=True):
            heads_first = (t[:kept].transpose(0, 1) for t in own)
            outs.append(F.scaled_dot_product_attention(*heads_first).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("mix", MIXES)
def test_one_pass_is_two_passes(mix):
    large, small = MIXES[mix]
    torch.manual_seed(0)
    qkv = [torch.randn(sum(large), 3, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    offsets = [cu_seqlens_of(counts) for counts in (large, small)]
    out = two_bin_attention(*qkv, *offsets, max(large), max(small), sum(small), backend="sdpa")
    expected = two_passes(*qkv, large, small)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    grad = torch.randn_like(expected)
    grads = (torch.autograd.grad(t, qkv, grad) for t in (out, expected))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_scores_far_apart_do_not_overflow():
    """The small set's keys score 1e4 below the others': their part is exactly nothing."""
    query, key, value = torch.ones(1, 1, 8), torch.ones(4, 1, 8), torch.randn(4, 1, 8)
    key[:2] *= -1e3
    rows = torch.cat([query, query, query, query]) * 10
    out = two_bin_attention(rows, key, value, cu_seqlens_of([4]), cu_seqlens_of([2]), 4, 2, 2)
    torch.testing.assert_close(out[:4], value[2:].mean(0, keepdim=True).expand(4, 1, 8))
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_one_pass_serves_wide_numbers_on_the_cpu_whose_offsets_can_be_read(device, dtype, monkeypatch):
    passes, plain = [], sdpa.two_passes

    def counting(*args):
        passes.append(2)
        return plain(*args)

    monkeypatch.setattr(sdpa, "two_passes", counting)
    rows, cu_seqlens = torch.randn(4, 1, 8, device=device, dtype=dtype), cu_seqlens_of([4]).to(device)
    out = sdpa.two_bin_attention(rows, rows, rows, Nested(cu_seqlens, cu_seqlens, 4, 4, 4), None)
    assert out.shape == (8, 1, 8)
    assert passes == ([] if device == "cpu" and dtype != torch.bfloat16 else [2])


def test_the_small_sets_keys_are_read_once(monkeypatch):
    """Forward: as many pairs of rows as the large set alone has."""
    pairs, plain = [], sdpa._flash

    def counting(query, key, value, **options):
        pairs.append(query.shape[2] * key.shape[2])
        return plain(query, key, value, **options)

    monkeypatch.setattr(sdpa, "_flash", counting)
    rows = torch.randn(10, 2, 8)
    two_bin_attention(rows, rows, rows, cu_seqlens_of([10]), cu_seqlens_of([6]), 10, 6, 6)
    assert sum(pairs) == 10 * 10
