"""Tensors of more than 2^31 elements: rows near their end are found, and no offset leaves its type.

On the CPU the memory is only promised: programs that would touch all of it are left out but for the last.
"""

from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from unittest import mock

import pytest
import torch

from diffratio_kernels.kernels.triton import (
    gather_adaln,
    gather_adaln_backward,
    launch,
    launcher,
    linear_gate_residual,
    linear_gelu,
    linear_scatter,
    router_logits,
    row_places,
    scatter_rescale,
    scatter_rescale_backward,
    two_bin_blend,
    two_bin_blend_backward,
    two_bin_gelu,
)
from diffratio_kernels.kernels.triton.launch import ROWS_PER_SLICE
from diffratio_kernels.testing.interpreter import interpreted, overflow_trap
from diffratio_kernels.testing.triton_check import same_bits

TOO_MANY = 2**31
WIDTH = 1152
ROWS = TOO_MANY // WIDTH + 40
LAUNCHING = (
    router_logits, gather_adaln_backward, scatter_rescale, scatter_rescale_backward, linear_gelu,
    linear_gate_residual, linear_scatter,
)  # fmt: skip
LAUNCHING_ADALN = (gather_adaln,)
LAUNCHING_TWO_BINS = (row_places, two_bin_blend, two_bin_blend_backward, two_bin_gelu)
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

    set_dim, set_idx, plain = builder.set_grid_dim, builder.set_grid_idx, launch.launch

    def only_the_last(kernel, grid, *args, **options):
        grid = (*grid, 1, 1)[:3]
        with (
            mock.patch.object(builder, "set_grid_dim", lambda *_: set_dim(*grid)),
            mock.patch.object(builder, "set_grid_idx", lambda *_: set_idx(*(size - 1 for size in grid))),
        ):
            plain(kernel, (1,), *args, **options)

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
    results = launcher("gather_adaln")(x, index, shift, scale, 1e-6)
    expected = launcher("gather_adaln")(rows[None], small, shift, scale, 1e-6)
    assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


def test_packed_rows_are_normalised(end, device):
    rows, *_ = end
    shift, scale = half(2, 1, WIDTH, device=device)
    packed = large(ROWS, WIDTH, device=device, last=rows)
    index = torch.empty(ROWS, dtype=torch.int64, device=device)
    index[-FEW:] = torch.arange(FEW, device=device)
    with last_programs(LAUNCHING_ADALN):
        normed = launcher("adaln")(packed, index, ROWS, shift, scale, 1e-6)
    expected = launcher("adaln")(rows, index[-FEW:], ROWS, shift, scale, 1e-6)
    assert same_bits(normed[-1], expected[-1])


def test_gathered_rows_get_their_gradients(end, device):
    rows, small, index = end
    scale, grad = half(1, WIDTH, device=device), half(4, WIDTH, device=device)
    kept = rows[small]
    with last_programs():
        result, *_ = launcher("adaln_backward")(kept, index, ROWS, scale, 1e-6, None, grad, ROWS)
    expected, *_ = launcher("adaln_backward")(kept, small, FEW, scale, 1e-6, None, grad, FEW)
    assert same_bits(result[-LAST:], expected[-LAST:])


@pytest.mark.parametrize("rescale", ["mlp", "residual"])
def test_rows_are_finished_in_place(rescale, end, device):
    rows, small, index = end
    logits = torch.randn(1, ROWS, device=device)
    x, twin = large(1, ROWS, WIDTH, device=device, last=rows), rows.clone()[None]
    arguments = finish(device)
    in_place = partial(launcher("scatter_rescale"), in_place=True)
    in_place(x, index, *arguments, logits, rescale, 1.0)
    in_place(twin, small, *arguments, logits[:, -FEW:], rescale, 1.0)
    assert same_bits(x[0, -FEW:], twin[0]) and not same_bits(twin[0], rows)


def test_rows_are_finished_and_differentiated(end, device):
    rows, small, index = end
    logits = torch.randn(1, ROWS, device=device)
    x, arguments = large(1, ROWS, WIDTH, device=device, last=rows), finish(device)
    with last_programs():
        out = launcher("scatter_rescale")(x, index, *arguments, logits, "residual", 1.0)
        grads = launcher("scatter_rescale_backward")(x, x, index, *arguments, logits, "residual", 1.0)
    call = small, *arguments, logits[:, -FEW:], "residual", 1.0
    expected = launcher("scatter_rescale")(rows[None], *call)
    expected_grads = launcher("scatter_rescale_backward")(rows[None], rows[None], *call)
    assert same_bits(out[0, -1], expected[0, -1])
    assert same_bits(grads[0][0, -LAST:], expected_grads[0][0, -LAST:])
    assert same_bits(grads[4][0, -LAST:], expected_grads[4][0, -LAST:])


def test_rows_are_scored(end, device):
    rows, _, _ = end
    x, weight = large(1, ROWS, WIDTH, device=device, last=rows), half(WIDTH, device=device)
    grad = torch.randn(1, ROWS, device=device)
    with last_programs():
        logits = launcher("router_logits")(x, weight, None)
        grad_x, _ = launcher("router_logits_backward")(grad, x, weight)
    assert same_bits(logits[:, -8:], launcher("router_logits")(rows[None, -8:], weight, None))
    expected, _ = launcher("router_logits_backward")(grad[:, -FEW:].contiguous(), rows[None], weight)
    assert same_bits(grad_x[0, -LAST:], expected[0, -LAST:])


def test_rows_of_the_mlp(device):
    inner, hidden = 8, 200
    rows = TOO_MANY // hidden + FEW
    last, weight = half(FEW, inner, device=device), half(hidden, inner, device=device)
    x = torch.empty(rows, inner, dtype=torch.float16, device=device)
    x[-FEW:] = last
    with last_programs():
        out, pre = launcher("linear_gelu")(x, weight, None, True)
        grad_pre, again = launcher("linear_gelu_backward")(x, weight.t(), pre)
    assert out.numel() > TOO_MANY
    expected, small = launcher("linear_gelu")(last, weight, None, True)
    expected_grad, expected_again = launcher("linear_gelu_backward")(last, weight.t(), small)
    pairs = (out, expected), (pre, small), (grad_pre, expected_grad), (again, expected_again)
    for actual, twin in pairs:  # the last program has the last columns of the last rows
        assert same_bits(actual[-1, -8:], twin[-1, -8:])


def test_a_product_joins_the_residual_stream(device):
    """Every row is a sample of its own: their gates too are more than 2^31 numbers."""
    inner, width = 8, 200
    rows = TOO_MANY // width + FEW
    hidden, last, gate = (half(FEW, size, device=device) for size in (width, inner, width))
    weight, index = half(width, inner, device=device), torch.empty(rows, dtype=torch.int64, device=device)
    index[-FEW:] = torch.arange(rows - FEW, rows)
    x = torch.empty(rows, inner, dtype=torch.float16, device=device)
    x[-FEW:] = last
    all_hidden, all_gate = (large(rows, width, device=device, last=t) for t in (hidden, gate))
    with last_programs():
        out = launcher("linear_gate_residual")(all_hidden, x, weight, None, all_gate, index, 1)
    few = torch.arange(FEW, device=device)
    expected = launcher("linear_gate_residual")(hidden, last, weight, None, gate, few, 1)
    assert same_bits(out[-1, -8:], expected[-1, -8:])


def test_residual_rows_of_a_product_are_found_in_x(end, device):
    rows, small, index = end
    x = large(1, ROWS, WIDTH, device=device, last=rows)
    product = half(4, 8, device=device), half(WIDTH, 8, device=device), None, half(1, WIDTH, device=device)
    out = launcher("linear_gate_residual")(x, *product, index, ROWS)
    expected = launcher("linear_gate_residual")(rows[None], *product, small, FEW)
    assert same_bits(out, expected)


@pytest.mark.parametrize("rescale", ["mlp", "residual"])
def test_a_product_is_put_back(rescale, end, device):
    rows, small, index = end
    hidden, _, gate = finish(device)
    inner, weight, logits = half(4, 8, device=device), half(WIDTH, 8, device=device), torch.randn(1, ROWS)
    logits, product = logits.to(device), (hidden, inner, weight, None, gate)
    x, twin = large(1, ROWS, WIDTH, device=device, last=rows), rows.clone()[None]
    put = launcher("linear_scatter")
    in_place = partial(put, in_place=True)
    in_place(twin, small, *product, logits[:, -FEW:], rescale, 1.0)
    with last_programs():
        out = put(x, index, *product, logits, rescale, 1.0)
    assert same_bits(out[0, -1, -8:], twin[0, -1, -8:])
    in_place(x, index, *product, logits, rescale, 1.0)
    assert same_bits(x[0, -FEW:], twin[0]) and not same_bits(twin[0], rows)


def test_attention_at_the_end_of_packed_rows(device):
    heads, head_dim = 2, 72
    rows = TOO_MANY // (heads * head_dim) + FEW
    shape = rows, heads, head_dim
    q, k, v, grad = (half(FEW, heads, head_dim, device=device) for _ in range(4))
    query, key, value, grad_out = (large(*shape, device=device, last=t) for t in (q, k, v, grad))
    offsets = torch.tensor([rows - FEW, rows - 17, rows], dtype=torch.int32, device=device)
    small = offsets - (rows - FEW)
    out, lse = launcher("attention")(query, key, value, offsets, offsets, 23, 23, None, None, True)
    expected, small_lse = launcher("attention")(q, k, v, small, small, 23, 23, None, None, True)
    assert same_bits(out[-FEW:], expected) and same_bits(lse[:, -FEW:], small_lse)
    packing = 23, 23, None, None
    grads = launcher("attention_backward")(grad_out, query, key, value, out, lse, offsets, offsets, *packing)
    expected = launcher("attention_backward")(grad, q, k, v, expected, small_lse, small, small, *packing)
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
    packing = offsets, offsets, rows, rows, None, None
    out = launcher("attention")(query, values, values, *packing)
    assert same_bits(out, launcher("attention")(values, values, values, *packing))


def test_rows_of_two_bins_in_the_mlp(device):
    """The last sample has its FEW rows in both bins: the small ones are the last of all."""
    width, weights = 200, torch.tensor([0.3, 0.7], device=device)
    rows = TOO_MANY // width + FEW
    last, last_grad = half(2 * FEW, width, device=device), half(FEW, width, device=device)
    pre = large(rows + FEW, width, device=device, last=last)
    grad = large(rows, width, device=device, last=last_grad)
    offsets = torch.tensor([[0, rows - FEW, rows], [0, 0, FEW]], dtype=torch.int32, device=device)
    bins = weights, *offsets
    with last_programs(LAUNCHING_TWO_BINS):
        out = launcher("two_bin_gelu")(pre, *bins, rows)
        grad_pre, dots = launcher("two_bin_gelu_backward")(grad, pre, *bins)
    few = torch.tensor([0, FEW], dtype=torch.int32, device=device)
    expected = launcher("two_bin_gelu")(last, weights[1:], few, few, FEW)
    expected_grad, expected_dots = launcher("two_bin_gelu_backward")(last_grad, last, weights[1:], few, few)
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
        rows = x.shape[1]
        bins = torch.tensor([0, rows], dtype=torch.int32, device=device)
        modulation = gate, logits[:, -rows:], weights, bins, bins
        call = x, torch.arange(rows, device=device), hidden, branch, *modulation, "residual", 1.0
        return launcher("two_bin_blend")(*call), *launcher("two_bin_blend_backward")(grad, *call)

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
    small_offsets = torch.tensor([0, 7, small], dtype=torch.int32, device=device)

    def run(tensors, grad_out, first):
        large_offsets = torch.tensor([first, first + 23, first + FEW], dtype=torch.int32, device=device)
        packing = large_offsets, small_offsets, 23, 9, small, None
        out, lse = launcher("two_bin_attention")(*tensors, *packing, True)
        return out, lse.t(), *launcher("two_bin_attention_backward")(grad_out, *tensors, out, lse, *packing)

    for actual, twin in zip(run(many, grad_out, rows - FEW), run(few, grad, 0), strict=True):
        assert same_bits(actual[-len(twin) :], twin)
