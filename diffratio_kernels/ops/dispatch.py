"""Which implementation of an operator runs: the fastest that can, or exactly the one asked for."""

from __future__ import annotations

import torch

from ..kernels import native

IMPLEMENTATIONS = {
    "route": ("native", "reference"),
    "gather_adaln": ("native", "reference"),
    "adaln": ("native", "reference"),
    "attention": ("sdpa", "reference"),
    "scatter_rescale": ("native", "reference"),
    "mod_block": ("native", "reference"),
}
"""Operator -> implementations, fastest first. The last one runs everywhere."""


def why_not(implementation: str, device_type: str) -> str | None:
    """Why an implementation cannot run on a device, None where it can. All of them take every float dtype."""
    if device_type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if implementation != "native":
        return None
    if device_type != "cpu":
        return f"the native kernels are for CPU tensors, not {device_type}"
    return native.unavailable


def choose(op: str, implementation: str, device: torch.device) -> str:
    """The implementation to run. An explicit choice that cannot run is an error, never another one."""
    known = IMPLEMENTATIONS[op]
    if implementation == "auto":
        return next((name for name in known if why_not(name, device.type) is None), known[-1])
    if implementation not in known:
        raise ValueError(f"{op}: implementation={implementation!r} must be one of {('auto', *known)}")
    reason = why_not(implementation, device.type)
    if reason is not None:
        raise ValueError(f"{op}: implementation={implementation!r} is not available: {reason}")
    return implementation


def capabilities() -> list[dict]:
    """Every operator x implementation x device type with `available` and, where it is not, `reason`."""
    return [
        {"op": op, "implementation": name, "device": device, "available": reason is None, "reason": reason}
        for op, names in IMPLEMENTATIONS.items()
        for name in names
        for device in ("cpu", "cuda")
        for reason in [why_not(name, device)]
    ]
