"""Tensors beside a page that nobody may touch, and workers that may die of touching it."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import resource
import signal
import traceback
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

SECONDS = 60
"""A worker that takes longer dies of SIGALRM."""

_libc = ctypes.CDLL(None, use_errno=True)


def fenced(t: Tensor, side: str = "end") -> Tensor:
    """A CPU copy with the same shape and strides that ends (side "end") or begins ("start") at a fence.

    The fence is a page without access: a read or write of one element beyond it is SIGSEGV. What a forked
    worker writes into the copy is seen by its caller.
    """
    if side not in ("start", "end"):
        raise ValueError(f"fenced: side={side!r} must be 'start' or 'end'")
    if t.numel() == 0:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)  # its pointer is null
    extent = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    used = extent * t.element_size()
    room = -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
    for page in (0, mmap.PAGESIZE + room):
        _forbid(region, page)
    offset = mmap.PAGESIZE + (room - used if side == "end" else 0)
    flat = torch.frombuffer(region, dtype=t.dtype, count=extent, offset=offset)
    flat.copy_(t.detach().as_strided((extent,), (1,)))
    return flat.as_strided(t.shape, t.stride())


def _forbid(region: mmap.mmap, start: int) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(region, start))
    if _libc.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")


def fatal_signal(function: Callable, *args) -> signal.Signals | None:
    """The signal that killed a forked worker in `function(*args)`, None if it returned.

    For CPU work only. An exception in the worker is a RuntimeError here, with its traceback as the text.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: the worker uses none of torch's
        child = os.fork()
    if child == 0:
        _work(writer, function, args)
    os.close(writer)
    with open(reader) as pipe:
        report = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code > 0:
        raise RuntimeError(f"in the worker:\n{report}")
    return signal.Signals(-code) if code else None


def survives(function: Callable, *args) -> bool:
    """Whether a forked worker returns from `function(*args)`; see `fatal_signal`."""
    return fatal_signal(function, *args) is None


def _work(writer: int, function: Callable, args: tuple) -> None:
    code = 0
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        torch.set_num_threads(1)  # the threads of the parent do not exist here
        function(*args)
    except BaseException:
        code = 1
        with open(writer, "w") as pipe:
            pipe.write(traceback.format_exc())
    finally:
        os._exit(code)
