"""`attention`: packed samples, a scale of the caller's own, samples without queries or keys, padded text."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.ops.attention import sdpa
from diffratio_kernels.testing.budget import gradients
from diffratio_kernels.types import Seqlens

BACKENDS = ("triton", "sdpa", "reference")


def offsets(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_sample_attends_to_its_own_keys(backend):
    query, (key, value) = torch.randn(5, 2, 8), torch.randn(2, 7, 2, 8)
    lengths = torch.tensor([3, 2], dtype=torch.int32)
    places = offsets(0, 2, 5), offsets(0, 4, 7), 3, 4
    out = dk.attention(query, key, value, *places, key_lengths=lengths, backend=backend)
    for rows, keys in ((slice(0, 2), slice(0, 3)), (slice(2, 5), slice(4, 6))):
        q, k, v = query[rows].transpose(0, 1), key[keys].transpose(0, 1), value[keys].transpose(0, 1)
        expected = (q @ k.mT / 8**0.5).softmax(-1) @ v
        torch.testing.assert_close(out[rows], expected.transpose(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
def test_scale_is_that_of_the_reference(backend):
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    tensors = {name: torch.randn(5, 2, 16) for name in ("query", "key", "value")}
    packing = {
        "cu_seqlens_q": offsets,
        "cu_seqlens_k": offsets,
        "max_seqlen_q": 5,
        "max_seqlen_k": 5,
        "scale": 0.2,
    }
    (out, grads), (expected, expected_grads) = (
        gradients(dk.attention, tensors | packing | {"backend": name}, seed=0)
        for name in (backend, "reference")
    )
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-4, atol=1e-5)


def test_a_tiny_scale_gives_the_mean_of_values():
    """Nothing is left of it in fp32; the last block of keys is masked."""
    query, (key, value) = torch.randn(3, 1, 24), torch.randn(2, 5, 1, 24)
    places = offsets(0, 3), offsets(0, 5), 3, 5
    out = dk.attention(query, key, value, *places, scale=1e-60, backend="triton")
    torch.testing.assert_close(out, value.mean(0).expand(3, 1, 24), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "keys"), [(torch.float32, 31), (torch.float16, 63)], ids=str)
def test_keys_are_one_short_of_a_block(dtype, keys):
    """All scores are far below 0, which is what a key that is not there would score."""
    key = torch.ones(keys, 1, 24, dtype=dtype)
    places = offsets(0, 1), offsets(0, keys), 1, keys
    out = dk.attention(-9 * key[:1], key, key, *places, backend="triton")
    torch.testing.assert_close(out, key[:1], rtol=1e-3, atol=1e-3)


def test_nan_beyond_the_keys_that_count_stays_there():
    """Padded text, and the next sample's; both parts of a head, and the gradients."""
    query, key, value = torch.randn(2, 1, 24), torch.randn(9, 1, 24), torch.randn(9, 1, 24)
    key[3:5], value[3:5] = float("nan"), float("nan")
    lengths = torch.tensor([3, 4], dtype=torch.int32)
    packing = {"cu_seqlens_q": offsets(0, 1, 2), "cu_seqlens_k": offsets(0, 5, 9), "max_seqlen_q": 1}
    arguments = {"query": query, "key": key, "value": value, "key_lengths": lengths, "max_seqlen_k": 5}
    out, grads = gradients(dk.attention, packing | arguments | {"backend": "triton"}, seed=0)
    assert out.isfinite().all() and all(grad.isfinite().all() for grad in grads.values())
    assert not grads["key"][3:5].any() and not grads["value"][3:5].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_of_no_samples(backend):
    nothing = torch.empty(0, 2, 8)
    out = dk.attention(nothing, nothing, nothing, offsets(0), offsets(0), 0, 0, backend=backend)
    assert out.shape == (0, 2, 8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_without_keys_get_zeros(backend):
    """A sample without keys beside one that has some; a batch without any keys; keys without queries."""
    query, key, value = torch.randn(3, 5, 2, 8)
    option = {"backend": backend}
    out = dk.attention(query, key[:2], value[:2], offsets(0, 3, 5), offsets(0, 0, 2), 3, 2, **option)
    assert not out[:3].any() and out[3:].all()
    assert not dk.attention(query, key[:0], value[:0], offsets(0, 5), offsets(0, 0), 5, 0, **option).any()
    assert dk.attention(query[:0], key, value, offsets(0, 0), offsets(0, 5), 0, 5, **option).shape == (
        0,
        2,
        8,
    )


@pytest.mark.parametrize("layout", ["joined", "transposed", "contiguous"])
@pytest.mark.parametrize("lengths", [None, [4, 0, 3]], ids=str)
@pytest.mark.parametrize("path", ["triton", "sdpa", "reference", "padded"])
def test_heads_of_query_share_those_of_key_and_value(path, lengths, layout):
    """As attention to every key and value repeated: value and gradients, summed over the heads that share."""
    heads, few, width, counts = 6, 2, 24, [4, 7, 3]
    joined = torch.randn(sum(counts), heads + 2 * few, width)
    query, key, value = joined.split([heads, few, few], dim=1)
    if layout != "joined":
        query, key, value = (t.contiguous() for t in (query, key, value))
    if layout == "transposed":
        query, key, value = (t.mT.contiguous().mT for t in (query, key, value))
    ends = offsets(0, 4, 11, 14)
    arguments = {
        "cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": 7, "max_seqlen_k": 7,
        "key_lengths": None if lengths is None else offsets(*lengths),
    }  # fmt: skip

    def repeated(key, value, **arguments):
        key, value = (torch.stack([t[:, i // 3] for i in range(heads)], dim=1) for t in (key, value))
        return dk.attention(key=key, value=value, **arguments, backend="reference")

    tensors = {"query": query, "key": key, "value": value}
    (out, grads), (expected, expected_grads) = (
        gradients(function, tensors | arguments, seed=0) for function in (PATHS[path], repeated)
    )
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    for name, grad in grads.items():
        assert grad.shape == tensors[name].shape
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-4, atol=1e-5)


LENGTHS = [3, 0, 5]
KEEPS = {"uniform": (6, 6, 6), "per sample": (6, 2, 0)}


def padded_path(query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, key_lengths):
    """The way of traced and GPU tensors, whose offsets the host does not read."""
    seqlens = Seqlens(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_lengths)
    return sdpa._padded(query, key, value, seqlens, None)


def with_backend(name):
    return lambda **arguments: dk.attention(**arguments, backend=name)


PATHS = {
    "sdpa": with_backend("sdpa"),
    "triton": with_backend("triton"),
    "reference": with_backend("reference"),
    "padded": padded_path,
}


@pytest.mark.parametrize("nothing", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("path", PATHS)
def test_attention_ignores_keys_and_values_past_the_length(path, keep, nothing):
    keep = KEEPS[keep]
    query, key, value = torch.randn(sum(keep), 2, 8), torch.randn(3, 5, 2, 8), torch.randn(3, 5, 2, 8)
    padding = torch.arange(5) >= torch.tensor(LENGTHS)[:, None]
    ends = torch.tensor([0, *keep]).cumsum(0).int()
    arguments = {
        "query": query,
        "cu_seqlens_q": ends,
        "cu_seqlens_k": torch.tensor([0, 5, 10, 15], dtype=torch.int32),
        "max_seqlen_q": 6,
        "max_seqlen_k": 5,
        "key_lengths": torch.tensor(LENGTHS, dtype=torch.int32),
    }

    def run(fill):
        filled = [t.masked_fill(padding[..., None, None], fill).flatten(0, 1) for t in (key, value)]
        return gradients(PATHS[path], arguments | dict(zip(("key", "value"), filled, strict=True)), seed=0)

    (expected, expected_grads), (out, grads) = run(0.0), run(nothing)
    assert torch.equal(out, expected) and not out[ends[1] : ends[2]].any()
    for name, grad in grads.items():
        assert torch.equal(grad, expected_grads[name]), name
    assert (
        not grads["key"].view(3, 5, 2, 8)[padding].any()
        and not grads["value"].view(3, 5, 2, 8)[padding].any()
    )
