"""`qk_norm_rope`: query and key normed and turned by the place of their token, beside the value."""

import pytest
import torch
import torch.nn.functional as F

import diffratio_kernels as dk
from diffratio_kernels._backends import kernels, unavailable_reason
from diffratio_kernels.types import HeadNorm, Heads, PackedRows, Rope

B, N, T = 2, 7, 9
OF_NORM = ("across_heads", "eps", "query_weight", "key_weight", "query_bias", "key_bias")
BACKENDS = [b for b in ("cpu", "triton", "reference") if unavailable_reason(b, "cpu") is None]


def drawn(heads=4, kv_heads=4, width=16, dtype=torch.float32):
    """Rows of two samples in a packed projection, and their places."""
    index = torch.tensor([0, 2, 3, 6, 7, 8, 10, 12, 13])
    qkv = torch.randn(T, (heads + 2 * kv_heads) * width, dtype=dtype)
    return qkv.split([heads * width, kv_heads * width, kv_heads * width], dim=1), index


def norm_of(kind, heads, kv_heads, width, across, weights=True):
    if kind == "none":
        return None
    sizes = (heads * width, kv_heads * width) if across else (width, width)
    weight = [1 + torch.randn(size) / 4 if weights else None for size in sizes]
    bias = [torch.randn(size) / 4 if weights and kind == "layer" else None for size in sizes]
    return HeadNorm(kind, *weight, *bias, eps=1e-5, across_heads=across)


def table(samples, heads, pairs, halves=False):
    angle = torch.rand(samples, N, heads, pairs) * 6
    return Rope(angle.cos(), angle.sin(), halves)


def call(parts, index, heads, few, norm, rope, backend):
    options = {} if norm is None else {name: getattr(norm, name) for name in OF_NORM} | {"norm": norm.kind}
    options |= {} if rope is None else {"cos": rope.cos, "sin": rope.sin, "halves": rope.halves}
    return dk.qk_norm_rope(*parts, index, N, heads, few, **options, backend=backend)


def expected(x, heads, norm, weight, bias, index, rope):
    """By the definitions, a row and a head at a time, in fp64; pairs as complex numbers."""
    out = x.double().clone()
    for t, i in enumerate(index.tolist()):
        row = out[t]
        if norm is not None and norm.across_heads:
            row = normed(row, norm, weight, bias)
        row = row.view(heads, -1)
        for h in range(heads):
            one = row[h]
            if norm is not None and not norm.across_heads:
                one = normed(one, norm, weight, bias)
            if rope is not None:
                one = turned(one, rope, i, h)
            out[t].view(heads, -1)[h] = one
    return out.view(len(index), heads, -1)


def normed(row, norm, weight, bias):
    weight, bias = (None if t is None else t.double() for t in (weight, bias))
    if norm.kind == "layer":
        return F.layer_norm(row, row.shape, weight, bias, norm.eps)
    return F.rms_norm(row, row.shape, weight, norm.eps)


def turned(one, rope, i, h):
    samples, _, heads, pairs = rope.cos.shape
    at = (i // N if samples > 1 else 0), i % N, (h if heads > 1 else 0)
    angle = torch.complex(rope.cos[at].double(), rope.sin[at].double())
    head, rest = one[: 2 * pairs], one[2 * pairs :]
    if rope.halves:
        done = torch.complex(head[:pairs], head[pairs:]) * angle
        return torch.cat([done.real, done.imag, rest])
    done = torch.complex(head[0::2], head[1::2]) * angle
    return torch.cat([torch.stack([done.real, done.imag], -1).flatten(), rest])


CASES = {
    "rms per head": ("rms", False, 4, 4, 16, (1, 1, 8, False)),
    "rms across heads, angles of each head": ("rms", True, 4, 4, 16, (1, 4, 8, False)),
    "layer per head, no rope": ("layer", False, 4, 4, 16, None),
    "layer across heads": ("layer", True, 3, 3, 24, (1, 1, 12, False)),
    "a table for every sample": ("rms", False, 4, 4, 16, (2, 1, 8, False)),
    "halves, some channels": ("rms", False, 3, 3, 24, (1, 1, 8, True)),
    "some channels, side by side": ("none", False, 3, 3, 24, (1, 1, 8, False)),
    "fewer heads of key and value": ("rms", False, 12, 4, 72, (2, 1, 36, True)),
    "no norm, no rope": ("none", False, 4, 2, 16, None),
}


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    kind, across, heads, few, width, rope = CASES[name]
    parts, index = drawn(heads, few, width, dtype)
    norm = norm_of(kind, heads, few, width, across)
    return parts, index, heads, few, norm, None if rope is None else table(*rope)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_each_head_is_normed_and_turned(name, backend):
    (query, key, value), index, heads, few, norm, rope = made(name)
    out = call((query, key, value), index, heads, few, norm, rope, backend)
    weights = (None,) * 4
    if norm is not None:
        weights = norm.query_weight, norm.query_bias, norm.key_weight, norm.key_bias
    wanted = [
        expected(query, heads, norm, *weights[:2], index, rope),
        expected(key, few, norm, *weights[2:], index, rope),
        value.view(T, few, -1).double(),
    ]
    torch.testing.assert_close(out.double(), torch.cat(wanted, dim=1), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("kernels", [backend for backend in BACKENDS if backend != "reference"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_kernels_are_those_of_the_reference(name, kernels):
    found = []
    for backend in (kernels, "reference"):
        parts, index, heads, few, norm, rope = made(name)
        leaves = [part.clone().requires_grad_() for part in parts]
        if norm is not None:
            for field in ("query_weight", "key_weight", "query_bias", "key_bias"):
                if getattr(norm, field) is not None:
                    getattr(norm, field).requires_grad_()
                    leaves.append(getattr(norm, field))
        out = call(leaves[:3], index, heads, few, norm, rope, backend)
        torch.manual_seed(1)
        out.backward(torch.randn_like(out))
        found.append([leaf.grad for leaf in leaves])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, atol=5e-6, rtol=5e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_go_to_their_places_among_those_of_another_stream(backend):
    """As blocks call every backend: three rows of the other stream behind those of each sample."""
    parts, index, heads, few, norm, rope = made("a table for every sample")
    given, rows = Heads(*parts, heads, few), PackedRows(index, N)
    prepare = kernels("qk_norm_rope", backend).qk_norm_rope
    out = torch.zeros(T + 6, heads + 2 * few, 16)
    prepare(given, rows, norm, rope, out, torch.tensor([0, 3], dtype=torch.int32))
    of_second = int((index >= N).sum())
    alone = prepare(given, rows, norm, rope)
    first = T - of_second
    torch.testing.assert_close(out[:first], alone[:first])
    torch.testing.assert_close(out[first + 3 : -3], alone[first:])
    assert not out[first : first + 3].any() and not out[-3:].any()
