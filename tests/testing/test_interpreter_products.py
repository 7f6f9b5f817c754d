"""What the suite changes in the interpreter: products in an order of ours, and less work of its own."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from tools.guards.interpreter import interpreted, ordered_products
from tools.guards.quick_interpreter import quick_interpreter

pytestmark = pytest.mark.skipif(not interpreted(), reason="kernels are compiled on this machine")


@triton.jit
def product(x_ptr, y_ptr, out_ptr, ROWS: tl.constexpr, D: tl.constexpr):
    row, inner = tl.arange(0, ROWS)[:, None], tl.arange(0, D)
    x = tl.load(x_ptr + row * D + inner[None, :])
    y = tl.load(y_ptr + inner[:, None] * D + inner[None, :])
    tl.store(out_ptr + row * D + inner[None, :], tl.dot(x, y, input_precision="ieee"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_product_adds_in_one_order_whatever_the_number_of_rows(dtype):
    x, y = torch.randn(64, 64).to(dtype), torch.randn(64, 64).to(dtype)
    expected = torch.zeros(64, 64, dtype=torch.float64)
    for k in range(64):
        expected += x[:, k, None].double() * y[k].double()
    for rows in (16, 32, 64):
        out = torch.empty(rows, 64)
        with ordered_products():
            product[(1,)](x, y, out, ROWS=rows, D=64)
        assert torch.equal(out, expected[:rows].float())


@triton.jit
def doubled(x):
    return tl.maximum(x, 0) + tl.minimum(x, 0) + x


@triton.jit
def double_many(x_ptr, out_ptr, D: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, D))
    for _ in range(10):
        x = doubled(x)
    tl.store(out_ptr + tl.arange(0, D), x + tl.sum(x))


@pytest.mark.parametrize("wrong", [False, True])
def test_a_launch_exchanges_the_language_once_and_gives_it_back(wrong, monkeypatch):
    """Not for each of the 40 calls of a function; and an error in the kernel gives it back too."""
    looks, plain = [], interpreter._patch_lang_core
    monkeypatch.setattr(
        interpreter, "_patch_lang_core", lambda *args: (looks.append(args[0]), plain(*args))[1]
    )
    x, out, load = torch.randn(16), torch.empty(16), tl.load
    for _ in range(2):
        looks.clear()
        with quick_interpreter():
            if wrong:
                with pytest.raises(InterpreterError):
                    double_many[(1,)](x, out[0], D="16")
            else:
                double_many[(4,)](x, out, D=16)
                assert torch.allclose(out, 2**10 * (x + x.sum()), rtol=1e-5)
        assert 0 < looks.count(tl) < 5 and tl.load is load


DTYPES = {tl.int1: bool, tl.int32: "int32", tl.uint8: "uint8", tl.float16: "float16", tl.bfloat16: "uint16"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_arrays_are_remembered(dtype):
    assert interpreter._get_np_dtype.__module__ == quick_interpreter.__module__
    for _ in range(2):
        assert interpreter._get_np_dtype(dtype) == DTYPES[dtype]
        assert interpreter._get_np_dtype(tl.block_type(dtype, [16, 8])) == DTYPES[dtype]
        for pointer in (tl.pointer_type(dtype), tl.block_type(tl.pointer_type(dtype), [16])):
            assert interpreter._get_np_dtype(pointer) == "uint64"


@triton.jit
def mixed(x_ptr, y_ptr, out_ptr, ROWS: tl.constexpr, D: tl.constexpr):
    """[ROWS, D] by [D], by numbers, by a half: of other shapes and types than the other operand."""
    row, d = tl.arange(0, ROWS)[:, None], tl.arange(0, D)
    x, y = tl.load(x_ptr + row * D + d[None, :]), tl.load(y_ptr + d)
    ratio = x / tl.load(x_ptr + (ROWS - 1 - row).to(tl.int64) * D + d[None, :])
    tl.store(out_ptr + row * D + d[None, :], ratio * y[None, :] + 2 * y + (d > 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_operands_that_are_not_alike_are_cast_and_broadcast(dtype):
    """fp16 by fp16, which are alike, is divided in fp32."""
    x, y, out = 1 + torch.rand(4, 8).to(dtype), torch.randn(8), torch.empty(4, 8)
    with quick_interpreter():
        mixed[(1,)](x, y, out, ROWS=4, D=8)
    ratio = x.float() / x.flip(0).float()
    assert torch.equal(out, ratio * y + 2 * y + (torch.arange(8) > 3))
