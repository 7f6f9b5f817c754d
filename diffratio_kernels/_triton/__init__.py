"""What every Triton kernel shares: how it is launched, its tiles, products with an epilogue. Triton itself is
imported at the first launch.

Kernels run on CUDA, and on CPU tensors where TRITON_INTERPRET=1 was set before Triton was imported.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import cache

import torch

unavailable = None if importlib.util.find_spec("triton") else "triton is not installed"
"""None where the kernels can be compiled, else why not."""

stand_ins: dict[str, Callable] = {}
"""Device type -> what is called instead of a kernel, with the kernel, grid, arguments and options of the
launch: ahead-of-time compilation listens on "meta", tests run compiled kernels on "cpu"."""


@cache
def capability(device: torch.device | int) -> int:
    """The compute capability of a GPU, 90 for 9.0: torch takes microseconds to tell."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def unavailable_reason(device_type: str) -> str | None:
    """Why the kernels cannot run on a device; None where they can."""
    if unavailable is not None:
        return unavailable
    if device_type in stand_ins:
        return None
    if device_type == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else "on the CPU it runs in Triton's interpreter only (TRITON_INTERPRET=1)"
    if device_type != "cuda":
        return f"it is for CUDA tensors, not {device_type}"
    return too_old()


def too_old() -> str | None:
    """Why this GPU runs nothing that is compiled for 8.0 and later; None where it does."""
    major, minor = divmod(capability(torch.cuda.current_device()), 10)
    return None if major >= 8 else f"it needs compute capability 8.0, this GPU has {major}.{minor}"
