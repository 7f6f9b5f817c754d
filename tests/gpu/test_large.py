"""More than 2^31 elements: rows near both ends come out as in a small run that holds these samples alone.

The same checks run on a few elements wherever the tests run.
"""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels._backends import kernels
from diffratio_kernels.types import Linear
from tools.launchers.calls import kernel_device
from tools.launchers.check import same_bits

SMALL = {
    "device": kernel_device(), "samples": 4, "tokens": 12, "width": 24, "heads": 3, "dtype": torch.float16,
}  # fmt: skip
LARGE = {
    "device": "cuda", "samples": 58, "tokens": 32768, "width": 1152, "heads": 16, "dtype": torch.bfloat16,
}  # fmt: skip
GPU = pytest.mark.gpu
BACKENDS = [
    pytest.param("cuda" if kernel_device() == "cuda" else "cpu", SMALL, id="small"),
    pytest.param("triton", SMALL, id="triton, small"),
    pytest.param("cuda", LARGE, id="cuda, large", marks=GPU),
    pytest.param("triton", LARGE, id="triton, large", marks=GPU),
]
TRITON = [pytest.param(SMALL, id="triton, small"), pytest.param(LARGE, id="triton, large", marks=GPU)]


@pytest.fixture(autouse=True)
def _give_memory_back():
    yield
    torch.cuda.empty_cache()


def draw(size, *shape, dtype=None):
    t = torch.randn(shape, device=size["device"], dtype=dtype or size["dtype"])
    assert size is SMALL or len(shape) < 3 or t.numel() > 2**31
    return t


def ends(t):
    """The first and the last sample."""
    return t[[0, -1]]


def leaf(t):
    return t.detach().requires_grad_()


def assert_ends(large, small, exact=True):
    """Sums over a sample's tokens may be grouped by the number of samples: those agree to rounding."""
    if exact:
        assert same_bits(ends(large), small)
    else:
        torch.testing.assert_close(ends(large), small, rtol=1e-4, atol=1e-3 * small.abs().max().item())


def some_rows(size):
    """Rows of the flattened x near both ends, and the same rows where only these two samples exist."""
    tokens, last = size["tokens"], size["samples"] - 1
    rows = torch.tensor([0, 1, tokens // 2, tokens - 1], device=size["device"])
    return torch.cat([rows, rows + last * tokens]), torch.cat([rows, rows + tokens])


def all_rows(size):
    count, tokens = size["samples"], size["tokens"]
    return torch.arange(count * tokens, device=size["device"]), torch.arange(
        2 * tokens, device=size["device"]
    )


def modulation(size):
    return draw(size, size["samples"], size["width"], dtype=torch.float32)


@pytest.mark.parametrize(("backend", "size"), BACKENDS)
def test_route(backend, size):
    samples, tokens, width = size["samples"], size["tokens"], size["width"]
    x, weight = draw(size, samples, tokens, width), draw(size, width) / width**0.5
    grad = torch.zeros(samples, tokens, device=size["device"])
    grad[0], grad[-1] = draw(size, 2, tokens, dtype=torch.float32)

    def run(x, grad):
        x, w = leaf(x), leaf(weight)
        index, _, logits = dk.route(x, w, 3, backend=backend)
        return index.view(-1, 3), logits.detach(), *torch.autograd.grad(logits, [x, w], grad)

    index, logits, grad_x, grad_weight = run(x, grad)
    few_index, few_logits, few_grad_x, few_grad_weight = run(ends(x), ends(grad))
    assert torch.equal(index[0], few_index[0])
    assert torch.equal(index[-1] - (samples - 1) * tokens, few_index[1] - tokens)
    assert_ends(logits, few_logits)
    assert_ends(grad_x, few_grad_x)
    assert not grad_x[1:-1].any()
    assert_ends(grad_weight[None], few_grad_weight[None].expand(2, -1), exact=False)


@pytest.mark.parametrize(("backend", "size"), BACKENDS)
def test_gather_adaln(backend, size):
    x, shift, scale = (
        draw(size, size["samples"], size["tokens"], size["width"]),
        modulation(size),
        modulation(size),
    )
    index, few = some_rows(size)
    incoming = [draw(size, len(index), size["width"]) for _ in range(2)]

    def run(x, index, shift, scale):
        leaves = [leaf(t) for t in (x, shift, scale)]
        outs = dk.gather_adaln(leaves[0], index, *leaves[1:], backend=backend)
        return *(out.detach() for out in outs), *torch.autograd.grad(outs, leaves, incoming)

    rows, normed, grad_x, *grads = run(x, index, shift, scale)
    few_rows, few_normed, few_grad_x, *few_grads = run(ends(x), few, ends(shift), ends(scale))
    assert same_bits(rows, few_rows) and same_bits(normed, few_normed)
    assert_ends(grad_x, few_grad_x)
    assert not grad_x[1:-1].any()
    for grad, small in zip(grads, few_grads, strict=True):
        assert_ends(grad, small, exact=False)


@pytest.mark.parametrize(("backend", "size"), BACKENDS)
def test_scatter_rescale(backend, size):
    shape = size["samples"], size["tokens"], size["width"]
    x, grad_out, gate = draw(size, *shape), draw(size, *shape), modulation(size)
    logits = draw(size, *shape[:2], dtype=torch.float32)
    index, few = some_rows(size)
    hidden, branch = (draw(size, len(index), size["width"]) for _ in range(2))

    def run(x, index, gate, logits, grad_out):
        leaves = [leaf(t) for t in (x, hidden, branch, gate, logits)]
        out = dk.scatter_rescale(leaves[0], index, *leaves[1:], rescale="residual", backend=backend)
        return out.detach(), *torch.autograd.grad(out, leaves, grad_out)

    out, grad_x, grad_hidden, grad_branch, grad_gate, grad_logits = run(x, index, gate, logits, grad_out)
    small = run(ends(x), few, ends(gate), ends(logits), ends(grad_out))
    for large, compact in ((out, small[0]), (grad_x, small[1]), (grad_logits, small[5])):
        assert_ends(large, compact)
    assert same_bits(grad_hidden, small[2]) and same_bits(grad_branch, small[3])
    assert_ends(grad_gate, small[4], exact=False)
    assert torch.equal(out[1:-1], x[1:-1]) and torch.equal(grad_x[1:-1], grad_out[1:-1])


@pytest.mark.parametrize(("backend", "size"), BACKENDS)
def test_adaln(backend, size):
    _check_packed("adaln", backend, size)


@pytest.mark.parametrize(("backend", "size"), BACKENDS)
def test_gate_residual(backend, size):
    _check_packed("gate_residual", backend, size)


def _check_packed(op, backend, size):
    shape, tokens = (size["samples"], size["tokens"], size["width"]), size["tokens"]
    rows, grad_out, first, second = draw(size, *shape), draw(size, *shape), modulation(size), modulation(size)
    index, few = all_rows(size)

    def run(rows, index, first, second, grad_out):
        leaves = [leaf(rows), leaf(first), *([leaf(second)] if op == "adaln" else [])]
        flat = leaves[0].flatten(0, 1)
        if op == "adaln":
            out = dk.adaln(flat, index, tokens, *leaves[1:], backend=backend)
        else:
            out = dk.gate_residual(flat.detach(), flat, leaves[1], index, tokens, backend=backend)
        grads = torch.autograd.grad(out, leaves, grad_out.flatten(0, 1))
        return out.detach().view_as(rows), *grads

    large = run(rows, index, first, second, grad_out)
    small = run(ends(rows), few, ends(first), ends(second), ends(grad_out))
    for i, (a, b) in enumerate(zip(large, small, strict=True)):
        assert_ends(a, b, exact=i < 2)


@pytest.mark.parametrize("size", TRITON)
def test_attention(size):
    """Queries, keys and values are one tensor; short samples, so that products are cheap."""
    longest, heads = max(size["tokens"] // 128, 5), size["heads"]
    samples = size["samples"] * size["tokens"] // longest
    shape = samples, longest, heads * (size["width"] // heads)
    x, grad_out = draw(size, *shape), draw(size, *shape)

    def run(x, grad_out):
        count = x.shape[0]
        offsets = longest * torch.arange(count + 1, dtype=torch.int32, device=x.device)
        leaves = [leaf(x.view(count * longest, heads, -1)) for _ in range(3)]
        out = dk.attention(*leaves, offsets, offsets, longest, longest, backend="triton")
        grads = torch.autograd.grad(out, leaves, grad_out.view_as(out))
        return [t.detach().view_as(x) for t in (out, *grads)]

    for large, small in zip(run(x, grad_out), run(ends(x), ends(grad_out)), strict=True):
        assert_ends(large, small)


@pytest.mark.parametrize("size", TRITON)
def test_linear_gelu(size):
    """rows [T, D] to [T, 4 D]: the wide side has more than 2^31 elements."""
    width, group = size["width"], 256
    count = size["samples"] * size["tokens"] // 4 // group + 1
    rows = torch.randn(count, group, width, device=size["device"], dtype=size["dtype"])
    weight, bias = draw(size, 4 * width, width) / width**0.5, draw(size, 4 * width)
    next_weight, triton = draw(size, width, 4 * width) / width**0.5, kernels("mlp", "triton")
    assert size is SMALL or count * group * 4 * width > 2**31

    def run(rows):
        flat = rows.flatten(0, 1)
        pre = flat.new_empty(flat.shape[0], weight.shape[0])
        inner = triton.linear_gelu(flat, Linear(weight, bias), pre=pre)
        grad_pre, again = triton.linear_gelu_backward(flat, next_weight, pre)
        return [t.view(rows.shape[0], group, -1) for t in (inner, pre, grad_pre, again)]

    for large, small in zip(run(rows), run(ends(rows)), strict=True):
        assert_ends(large, small)
