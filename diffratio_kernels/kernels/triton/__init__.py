"""Launchers of the Triton kernels: tensors in, tensors out. Triton itself is imported at the first launch.

They run on CUDA, and on CPU tensors where TRITON_INTERPRET=1 was set before Triton was imported.
"""

from __future__ import annotations

import importlib
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

_MODULE = {
    "router_logits_backward": "router_logits",
    "topk_places": "topk_select",
    "adaln": "gather_adaln",
    "adaln_backward": "gather_adaln_backward",
    "gate_residual_backward": "gate_residual",
    "linear_gelu_backward": "linear_gelu",
    "scatter_rescale_next": "scatter_rescale",
    "two_bin_gelu_backward": "two_bin_gelu",
}


@cache
def _imported(name: str) -> Callable:
    return getattr(importlib.import_module(f".{_MODULE.get(name, name)}", __name__), name)


@cache
def launcher(name: str) -> Callable:
    """The launcher `name`, imported at its first call: from the module of its name, or as listed above."""
    return lambda *args, **kwargs: _imported(name)(*args, **kwargs)


class _Launchers:
    """Every launcher as an attribute, like the modules of the other kernels."""

    def __getattr__(self, name: str) -> Callable:
        return launcher(name)


launchers = _Launchers()


def why_not(device_type: str) -> str | None:
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
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"it needs compute capability 8.0, this GPU has {major}.{minor}"
