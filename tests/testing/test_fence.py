"""Fenced tensors are copies in every respect but the fence, and the worker reports how it ended."""

import ctypes
import mmap
import os
import signal

import pytest
import torch

from tools.guards import fence
from tools.guards.fence import fatal_signal, fenced, survives

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool]


def touch(address: int, write: bool) -> None:
    byte = ctypes.c_char.from_address(address)
    if write:
        byte.value = b"x"
    else:
        _ = byte.value


def bounds(t: torch.Tensor) -> tuple[int, int]:
    """Address of the first byte and of the one behind the last."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("size", [1, 13, 4096, 5000])
def test_the_byte_beyond_the_fence_kills_and_the_last_one_does_not(size, write):
    t = torch.zeros(size, dtype=torch.int8)
    copies = fenced(t, side="start"), fenced(t)
    begin, end = bounds(copies[0])[0], bounds(copies[1])[1]
    assert survives(touch, begin, write) and fatal_signal(touch, begin - 1, write) == signal.SIGSEGV
    assert survives(touch, end - 1, write) and fatal_signal(touch, end, write) == signal.SIGSEGV


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", ["start", "end"])
def test_values_dtype_and_alignment_are_kept(side, dtype):
    t = (torch.randn(3, 5, 7) * 9).to(dtype)
    copy = fenced(t, side)
    assert copy.dtype == dtype and torch.equal(copy, t) and copy.is_contiguous()
    assert copy.data_ptr() % t.element_size() == 0
    assert bounds(copy)[side == "end"] % mmap.PAGESIZE == 0


@pytest.mark.parametrize("side", ["start", "end"])
def test_strides_are_kept(side):
    t = torch.randn(6, 4, 5)
    for view in (t, t.mT, t[1:, ::2], t[:1].expand(3, 4, 5), t[2, 3, 4], t.requires_grad_()[3:]):
        copy = fenced(view, side)
        assert torch.equal(copy, view) and copy.stride() == view.stride() and not copy.requires_grad


def test_an_empty_tensor_has_no_address():
    copy = fenced(torch.empty(0, 4))
    assert copy.shape == (0, 4) and copy.stride() == (4, 1) and copy.data_ptr() == 0


def test_the_memory_outlives_the_call_and_goes_with_the_tensor():
    def mapped() -> int:
        with open("/proc/self/maps") as maps:
            return len(maps.readlines())

    before = mapped()
    held = [fenced(torch.full((1000,), float(i))) for i in range(50)]
    assert mapped() > before + 50 and all(t.eq(i).all() for i, t in enumerate(held))
    held.clear()
    assert mapped() < before + 50


def test_an_unknown_side_is_named():
    with pytest.raises(ValueError, match="side='middle'"):
        fenced(torch.ones(3), side="middle")


def test_the_caller_sees_what_a_worker_wrote_into_a_fenced_tensor_only():
    shared, private = fenced(torch.zeros(3)), torch.zeros(3)
    assert survives(lambda: (shared.fill_(1), private.fill_(1)))
    assert shared.tolist() == [1, 1, 1] and private.tolist() == [0, 0, 0]


def test_an_exception_or_exit_of_the_worker_is_not_survival():
    with pytest.raises(RuntimeError, match="in the worker(.|\n)*ValueError: wrong"):
        survives(lambda: (_ for _ in ()).throw(ValueError("wrong")))
    for leave in (lambda: os._exit(3), lambda: pytest.exit("no")):
        with pytest.raises(RuntimeError, match="in the worker"):
            survives(leave)


def test_other_ends_of_a_worker_are_told_apart(monkeypatch):
    assert fatal_signal(os.abort) == signal.SIGABRT
    monkeypatch.setattr(fence, "SECONDS", 1)
    assert fatal_signal(signal.pause) == signal.SIGALRM
    assert fatal_signal(lambda: None) is None


def test_a_worker_may_use_torch_after_its_parent_used_all_its_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        a = torch.randn(600, 600, requires_grad=True)
        (a @ a).exp().sum().backward()
        assert survives(lambda: (a.detach().requires_grad_() @ a).exp().sum().backward())
    finally:
        torch.set_num_threads(threads)
