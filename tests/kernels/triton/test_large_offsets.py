"""Tensors of more than 2^31 elements: rows near their end are found, and no offset leaves its type.

On the CPU the memory is only promised: programs that would touch all of it are left out but for the last.
"""

from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import pytest
import torch

from diffratio_kernels._triton import launch as launching
from diffratio_kernels._triton.launch import ROWS_PER_SLICE, launch
from diffratio_kernels.ops.adaln import triton as adaln
from diffratio_kernels.ops.attention import triton as attention
from diffratio_kernels.ops.fused_linear import gate_residual as fused_gate_residual
from diffratio_kernels.ops.fused_linear import scatter as fused_scatter
from diffratio_kernels.ops.mlp import triton as mlp
from diffratio_kernels.ops.route import triton as route
from diffratio_kernels.ops.scatter_rescale import triton as scatter
from diffratio_kernels.ops.two_bin_attention import triton as two_bin_attention
from diffratio_kernels.ops.two_bin_blend import triton as two_bin_blend
from diffratio_kernels.ops.two_bin_gelu import triton as two_bin_gelu
from diffratio_kernels.types import Bins, Finish, Linear, Nested, PackedRows, Rescale, Seqlens
from tools.guards.interpreter import interpreted, overflow_trap
from tools.launchers.check import same_bits

TOO_MANY = 2**31
WIDTH = 1152
ROWS = TOO_MANY // WIDTH + 40
LAUNCHING = (adaln, route, scatter, mlp, fused_gate_residual, fused_scatter)
LAUNCHING_TWO_BINS = (launching, two_bin_blend, two_bin_gelu)
LAST = ROWS % ROWS_PER_SLICE
"""Rows of the last program of a backward pass."""
FEW = 40
"""Rows at the end of the large tensors that are written and read; the small twin has only these."""


@pytest.fixture(autouse=True)
def trap():
    with overflow_trap() if interpreted() else nullcontext():
        yield


@contextmanager
def last_programs(modules=LAUNCHING):
    """Inside, an interpreted launch runs only its last program."""
    if not interpreted():
        yield
        return
    from triton.runtime.interpreter import interpreter_builder as builder

    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def only_the_last(kernel, grid, *args, **options):
        grid = (*grid, 1, 1)[:3]
        with (
            mock.patch.object(builder, "set_grid_dim", lambda *_: set_dim(*grid)),
            mock.patch.object(builder, "set_grid_idx", lambda *_: set_idx(*(size - 1 for size in grid))),
        ):
            launch(kernel, (1,), *args, **options)

    with ExitStack() as patches:
        for module in modules:
            patches.enter_context(mock.patch.object(module, "launch", only_the_last))
        yield


def half(*shape, device):
    return torch.randn(*shape, device=device).half()


def large(*shape, device, last):
    """An fp16 tensor whose memory nobody has touched but for its last rows."""
    t = torch.empty(shape, dtype=torch.float16, device=device)
    assert t.numel() > TOO_MANY
    t.view(-1, *last.shape[1:])[-last.shape[0] :] = last
    return t


@pytest.fixture
def end(device):
    """The last rows of x, their small twin's arguments, and index: the same rows of either."""
    torch.manual_seed(0)
    rows = half(FEW, WIDTH, device=device)
    small = torch.tensor([0, 7, 38, 39], device=device)
    return rows, small, small + (ROWS - FEW)


def finish(device):
    """hidden, branch, gate of four kept rows."""
    return half(4, WIDTH, device=device), half(4, WIDTH, device=device), half(1, WIDTH, device=device)


def test_rows_are_gathered(end, device):
    rows, small, index = end
    shift, scale = half(2, 1, WIDTH, device=device)
    x = large(1, ROWS, WIDTH, device=device, last=rows)
    results = adaln.gather_adaln(x, PackedRows(index, ROWS), shift, scale, 1e-6)
    expected = adaln.gather_adaln(rows[None], PackedRows(small, FEW), shift, scale, 1e-6)
    assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


def test_rows_are_gathered_with_the_modulation_of_their_samples(device):
    tokens, index = 2**15 + 3, torch.arange(4, device=device)
    x, (shift, scale) = half(4, tokens, 8, device=device), half(2, 4, 8, device=device)
    last = index * tokens + tokens - 1
    results = adaln.gather_adaln(x, PackedRows(last, tokens), shift, scale, 1e-6)
    expected = adaln.gather_adaln(x[:, -1:], PackedRows(index, 1), shift, scale, 1e-6)
    assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


def test_packed_rows_are_normalised(end, device):
    rows, *_ = end
    shift, scale = half(2, 1, WIDTH, device=device)
    packed = large(ROWS, WIDTH, device=device, last=rows)
    index = torch.empty(ROWS, dtype=torch.int64, device=device)
    index[-FEW:] = torch.arange(FEW, device=device)
    with last_programs():
        normed = adaln.adaln(packed, PackedRows(index, ROWS), shift, scale, 1e-6)
    expected = adaln.adaln(rows, PackedRows(index[-FEW:], ROWS), shift, scale, 1e-6)
    assert same_bits(normed[-1], expected[-1])


def test_gathered_rows_get_their_gradients(end, device):
    rows, small, index = end
    scale, grad = half(1, WIDTH, device=device), half(4, WIDTH, device=device)
    kept = rows[small]
    with last_programs():
        result, *_ = adaln.adaln_backward(kept, PackedRows(index, ROWS), scale, 1e-6, None, grad, ROWS)
    expected, *_ = adaln.adaln_backward(kept, PackedRows(small, FEW), scale, 1e-6, None, grad, FEW)
    assert same_bits(result[-LAST:], expected[-LAST:])


@pytest.mark.parametrize("rescale", ["mlp", "residual"])
def test_rows_are_finished_in_place(rescale, end, device):
    rows, small, index = end
    logits = torch.randn(1, ROWS, device=device)
    x, twin = large(1, ROWS, WIDTH, device=device, last=rows), rows.clone()[None]
    arguments, how = finish(device), Rescale(rescale)
    scatter.scatter_rescale_(Finish(x, PackedRows(index, ROWS), *arguments, logits, how))
    scatter.scatter_rescale_(Finish(twin, PackedRows(small, FEW), *arguments, logits[:, -FEW:], how))
    assert same_bits(x[0, -FEW:], twin[0]) and not same_bits(twin[0], rows)


def test_rows_are_finished_and_differentiated(end, device):
    rows, small, index = end
    logits = torch.randn(1, ROWS, device=device)
    x, arguments = large(1, ROWS, WIDTH, device=device, last=rows), finish(device)
    call = Finish(x, PackedRows(index, ROWS), *arguments, logits, Rescale("residual"))
    with last_programs():
        out = scatter.scatter_rescale(call)
        grads = scatter.scatter_rescale_backward(x, call)[:5]
    packed, logits = PackedRows(small, FEW), logits[:, -FEW:]
    call = Finish(rows[None], packed, *arguments, logits, Rescale("residual"))
    expected = scatter.scatter_rescale(call)
    expected_grads = scatter.scatter_rescale_backward(rows[None], call)[:5]
    assert same_bits(out[0, -1], expected[0, -1])
    assert same_bits(grads[0][0, -LAST:], expected_grads[0][0, -LAST:])
    assert same_bits(grads[4][0, -LAST:], expected_grads[4][0, -LAST:])


def test_rows_are_scored(end, device):
    rows, _, _ = end
    x, weight = large(1, ROWS, WIDTH, device=device, last=rows), half(WIDTH, device=device)
    grad = torch.randn(1, ROWS, device=device)
    with last_programs():
        logits = route.router_logits(x, weight, None)
        grad_x, _ = route.router_logits_backward(grad, x, weight)
    assert same_bits(logits[:, -4:], route.router_logits(rows[None, -4:], weight, None))
    expected, _ = route.router_logits_backward(grad[:, -FEW:].contiguous(), rows[None], weight)
    assert same_bits(grad_x[0, -LAST:], expected[0, -LAST:])


def test_rows_of_the_mlp(device):
    inner, hidden = 8, 200
    rows = TOO_MANY // hidden + FEW
    last, weight = half(FEW, inner, device=device), half(hidden, inner, device=device)
    x = torch.empty(rows, inner, dtype=torch.float16, device=device)
    x[-FEW:] = last
    pre = torch.empty(rows, hidden, dtype=torch.float16, device=device)
    small = torch.empty(FEW, hidden, dtype=torch.float16, device=device)
    with last_programs():
        out = mlp.linear_gelu(x, Linear(weight), pre=pre)
        grad_pre, again = mlp.linear_gelu_backward(x, weight.t(), pre)
    assert out.numel() > TOO_MANY
    expected = mlp.linear_gelu(last, Linear(weight), pre=small)
    expected_grad, expected_again = mlp.linear_gelu_backward(last, weight.t(), small)
    pairs = (out, expected), (pre, small), (grad_pre, expected_grad), (again, expected_again)
    for actual, twin in pairs:  # the last program has the last columns of the last rows
        assert same_bits(actual[-1, -8:], twin[-1, -8:])


def test_a_product_joins_the_residual_stream(device):
    """Every row is a sample of its own: their gates too are more than 2^31 numbers."""
    inner, width = 8, 200
    rows = TOO_MANY // width + FEW
    hidden, last, gate = (half(FEW, size, device=device) for size in (width, inner, width))
    linear = Linear(half(width, inner, device=device))
    index = torch.empty(rows, dtype=torch.int64, device=device)
    index[-FEW:] = torch.arange(rows - FEW, rows)
    x = torch.empty(rows, inner, dtype=torch.float16, device=device)
    x[-FEW:] = last
    all_hidden, all_gate = (large(rows, width, device=device, last=t) for t in (hidden, gate))
    add = fused_gate_residual.linear_gate_residual
    with last_programs():
        out = add(all_hidden, x, linear, all_gate, PackedRows(index, 1))
    few = PackedRows(torch.arange(FEW, device=device), 1)
    expected = add(hidden, last, linear, gate, few)
    assert same_bits(out[-1, -8:], expected[-1, -8:])


def test_residual_rows_of_a_product_are_found_in_x(end, device):
    rows, small, index = end
    x = large(1, ROWS, WIDTH, device=device, last=rows)
    linear, add = Linear(half(WIDTH, 8, device=device)), fused_gate_residual.linear_gate_residual
    product = half(4, 8, device=device), linear, half(1, WIDTH, device=device)
    out = add(x, *product, PackedRows(index, ROWS))
    expected = add(rows[None], *product, PackedRows(small, FEW))
    assert same_bits(out, expected)


@pytest.mark.parametrize("rescale", ["mlp", "residual"])
def test_a_product_is_put_back(rescale, end, device):
    rows, small, index = end
    hidden, _, gate = finish(device)
    inner, linear = half(4, 8, device=device), Linear(half(WIDTH, 8, device=device))
    logits, how = torch.randn(1, ROWS).to(device), Rescale(rescale)
    x = large(1, ROWS, WIDTH, device=device, last=rows)
    few = Finish(rows[None], PackedRows(small, FEW), hidden, inner, gate, logits[:, -FEW:], how)
    twin = fused_scatter.linear_scatter(few, linear)
    call = Finish(x, PackedRows(index, ROWS), hidden, inner, gate, logits, how)
    with last_programs():
        out = fused_scatter.linear_scatter(call, linear)
    assert same_bits(out[0, -1, -8:], twin[0, -1, -8:]) and not same_bits(twin[0], rows)


def test_attention_at_the_end_of_packed_rows(device):
    heads, head_dim = 2, 72
    rows = TOO_MANY // (heads * head_dim) + FEW
    shape = rows, heads, head_dim
    q, k, v, grad = (half(FEW, heads, head_dim, device=device) for _ in range(4))
    query, key, value, grad_out = (large(*shape, device=device, last=t) for t in (q, k, v, grad))
    offsets = torch.tensor([rows - FEW, rows - 17, rows], dtype=torch.int32, device=device)
    small = offsets - (rows - FEW)
    seqlens, few = (Seqlens(each, each, 23, 23) for each in (offsets, small))
    out, lse = attention.attention(query, key, value, seqlens, None, save_lse=True)
    expected, small_lse = attention.attention(q, k, v, few, None, save_lse=True)
    assert same_bits(out[-FEW:], expected) and same_bits(lse[:, -FEW:], small_lse)
    grads = attention.attention_backward(grad_out, query, key, value, out, lse, seqlens, None)
    expected = attention.attention_backward(grad, q, k, v, expected, small_lse, few, None)
    for name, actual, twin in zip("qkv", grads, expected, strict=True):
        assert same_bits(actual[-FEW:], twin), name


def test_attention_to_rows_far_apart(device):
    """Rows of one sample 2^27 elements apart: offsets inside a sample leave 32 bits too."""
    apart, rows, heads, head_dim = 2**27, 20, 2, 72
    values = half(rows, heads, head_dim, device=device)
    memory = torch.empty(apart * (rows - 1) + heads * head_dim, dtype=torch.float16, device=device)
    query = memory.as_strided((rows, heads, head_dim), (apart, head_dim, 1))
    query.copy_(values)
    offsets = torch.tensor([0, rows], dtype=torch.int32, device=device)
    seqlens = Seqlens(offsets, offsets, rows, rows)
    out = attention.attention(query, values, values, seqlens, None)
    assert same_bits(out, attention.attention(values, values, values, seqlens, None))


def test_rows_of_two_bins_in_the_mlp(device):
    """The last sample has its FEW rows in both bins: the small ones are the last of all."""
    width, weights = 200, torch.tensor([0.3, 0.7], device=device)
    rows = TOO_MANY // width + FEW
    last, last_grad = half(2 * FEW, width, device=device), half(FEW, width, device=device)
    pre = large(rows + FEW, width, device=device, last=last)
    grad = large(rows, width, device=device, last=last_grad)
    offsets = torch.tensor([[0, rows - FEW, rows], [0, 0, FEW]], dtype=torch.int32, device=device)
    bins = Bins(weights, *offsets, rows, FEW)
    with last_programs(LAUNCHING_TWO_BINS):
        out = two_bin_gelu.two_bin_gelu(pre, bins)
        grad_pre, dots = two_bin_gelu.two_bin_gelu_backward(grad, pre, bins)
    few = torch.tensor([0, FEW], dtype=torch.int32, device=device)
    few = Bins(weights[1:], few, few, FEW, FEW)
    expected = two_bin_gelu.two_bin_gelu(last, few)
    expected_grad, expected_dots = two_bin_gelu.two_bin_gelu_backward(last_grad, last, few)
    assert same_bits(out[-1], expected[-1]) and same_bits(dots[-1], expected_dots[-1])
    assert all(same_bits(grad_pre[row], expected_grad[row]) for row in (-1, -1 - FEW))


def test_rows_of_two_bins_are_blended_and_differentiated(device):
    """All tokens are kept in both bins."""
    x, grad, branch, *hidden = (half(FEW, WIDTH, device=device) for _ in range(5))
    gate, logits = half(1, WIDTH, device=device), torch.randn(1, ROWS, device=device)
    weights = torch.tensor([0.3], device=device)
    all_x, all_grad = (large(1, ROWS, WIDTH, device=device, last=t) for t in (x, grad))
    all_branch = large(ROWS, WIDTH, device=device, last=branch)
    all_hidden = large(2, ROWS, WIDTH, device=device, last=hidden[1]).flatten(0, 1)
    all_hidden[ROWS - FEW : ROWS] = hidden[0]

    def run(x, grad, branch, hidden):
        count = x.shape[1]
        cu_seqlens = torch.tensor([0, count], dtype=torch.int32, device=device)
        bins = Bins(weights, cu_seqlens, cu_seqlens, count, count)
        rows = PackedRows(torch.arange(count, device=device), count, bins=bins)
        call = Finish(x, rows, hidden, branch, gate, logits[:, -count:], Rescale("residual"))
        return two_bin_blend.two_bin_blend(call), *two_bin_blend.two_bin_blend_backward(grad, call)

    with last_programs(LAUNCHING_TWO_BINS):
        out, *grads = run(all_x, all_grad, all_branch, all_hidden)
    expected, *expected_grads = run(x[None], grad[None], branch, torch.cat(hidden))
    assert same_bits(out[0, -1], expected[0, -1])
    grad_x, grad_hidden, grad_branch, _, grad_logits, dots = zip(grads, expected_grads, strict=True)
    by_bin = [t.unflatten(0, (2, -1)) for t in grad_hidden]
    for actual, twin in (grad_x, by_bin, grad_logits):
        assert same_bits(actual[:, -LAST:], twin[:, -LAST:])
    for actual, twin in (grad_branch, dots):
        assert same_bits(actual[-LAST:], twin[-LAST:])


def test_attention_of_two_bins_at_the_end_of_packed_rows(device):
    heads, head_dim, small = 2, 72, 16
    rows = TOO_MANY // (heads * head_dim) + FEW
    few = [half(FEW, heads, head_dim, device=device) for _ in range(3)]
    many = [large(rows, heads, head_dim, device=device, last=t) for t in few]
    grad = half(FEW + small, heads, head_dim, device=device)
    grad_out = large(rows + small, heads, head_dim, device=device, last=grad)
    cu_seqlens_small = torch.tensor([0, 7, small], dtype=torch.int32, device=device)

    def run(tensors, grad_out, first):
        cu_seqlens_large = torch.tensor([first, first + 23, first + FEW], dtype=torch.int32, device=device)
        nested = Nested(cu_seqlens_large, cu_seqlens_small, 23, 9, small)
        out, lse = two_bin_attention.two_bin_attention(*tensors, nested, None, save_lse=True)
        backward = two_bin_attention.two_bin_attention_backward
        return out, lse.t(), *backward(grad_out, *tensors, out, lse, nested, None)

    for actual, twin in zip(run(many, grad_out, rows - FEW), run(few, grad, 0), strict=True):
        assert same_bits(actual[-len(twin) :], twin)
