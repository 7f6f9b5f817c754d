"""The row kernels at an instruction set below the processor's best."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffratio_kernels import _native


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Inside, the row kernels run on one of `_native.INSTRUCTION_SETS`, in all threads.

    Args:
        name: "avx512", "avx2" or "baseline".

    Raises:
        ValueError: it is none of them, or cannot run here.
    """
    before = _native.instruction_set()
    _native.use_instruction_set(name)
    try:
        yield
    finally:
        _native.use_instruction_set(before)
