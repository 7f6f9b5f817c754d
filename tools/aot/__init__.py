"""Ahead-of-time compilation of every shipped kernel, without a GPU: what `make kernels` reports."""

from __future__ import annotations

import os

from diffratio_kernels import _triton

ARCHITECTURES = (80, 90, 100)
"""Compute capabilities that the native library is built for."""
TRITON_ARCHITECTURES = (80, 90)
"""Those that the Triton kernels have tiles for; 100 takes the tiles of 90."""


def unavailable() -> str | None:
    """None where the kernels can be compiled here, else why not."""
    if _triton.unavailable:
        return _triton.unavailable
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y"):
        return "TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it"
    return None
