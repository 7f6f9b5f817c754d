"""What the machine gives: a large matrix product, a copy, an empty launch. All else is a part of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..harness.options import Options
from ..harness.subject import Candidate, Subject

PRODUCT = {"cuda": 8192, "cpu": 2048}
"""Rows, columns and inner dimension of the product."""
COPY_BYTES = 2**28


def subjects(options: Options) -> Iterator[Subject]:
    """The subjects "matmul", "copy" (bytes are read and written) and "launch" (of one element's kernel)."""
    device, dtype = options.device, options.dtype
    size, count = PRODUCT[device], COPY_BYTES // dtype.itemsize

    def draw(*shape):
        return lambda seed: torch.randn(*shape, device=device, dtype=dtype)

    def copied(pair):
        return pair[1].copy_(pair[0])  # not into fresh memory: a system's pages are not what is measured

    def launched(t):
        return t.add_(1)

    def one(name, make, touched, candidate):
        return Subject("peak", name, dtype, {}, make, touched, (candidate,))

    product = Candidate("torch", lambda pair: pair[0] @ pair[1], flops=2 * size**3)
    yield one("matmul", draw(2, size, size), 3 * size**2 * dtype.itemsize, product)
    yield one("copy", draw(2, count), 2 * COPY_BYTES, Candidate("torch", copied, moved=2 * COPY_BYTES))
    yield one("launch", draw(1), dtype.itemsize, Candidate("torch", launched))
