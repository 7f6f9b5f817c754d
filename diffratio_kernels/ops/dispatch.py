"""Which implementation of an operator runs: the fastest that can, or exactly the one asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..kernels import attention_backends, cublaslt, cuda, native, triton

ROW_KERNELS = {"native": native, "cuda": cuda, "triton": triton.launchers}
"""Implementation -> its launchers of the row steps; the reference has functions of its own."""


class NotAvailable(ValueError):
    """An implementation was asked for by name that this device, dtype or installation does not have."""


KERNELS: dict[str, dict[str, Callable]] = {}
"""Operator -> implementation -> the function that computes it; each operator's module fills in its own."""

DIFFERENTIABLE: dict[str, dict[str, Callable]] = {}
"""The same in steps that autograd sees through."""

_ROWS = ("native", "cuda", "triton", "reference")
IMPLEMENTATIONS = {
    "route": _ROWS,
    "gather_adaln": _ROWS,
    "adaln": _ROWS,
    "gate_residual": ("triton", "reference"),
    "attention": ("triton", "sdpa", "cudnn", "varlen", "flash_attn", "reference"),
    "mlp": ("cublaslt", "triton", "torch"),
    "scatter_rescale": _ROWS,
    "mod_block": _ROWS,
    "two_bin_attention": ("triton", "sdpa", "cudnn", "varlen", "flash_attn", "reference"),
    "two_bin_gelu": _ROWS,
    "two_bin_blend": _ROWS,
    "two_bin_block": _ROWS,
}
"""Operator -> implementations. The last one runs everywhere."""

_EVERY = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HALF = (torch.bfloat16, torch.float16)
DTYPES = {"cuda": _EVERY[:3], "triton": _EVERY[:3]}
DTYPES |= dict.fromkeys(("cublaslt", "cudnn", "varlen", "flash_attn"), _HALF)
"""Implementation -> dtypes it takes; those not listed take every float dtype."""

_AUTO = {
    "cpu": ("native", "sdpa", "torch", "reference"),
    "cuda": ("cuda", "cublaslt", "triton", "sdpa", "torch", "reference"),
}
"""Device type -> the order in which "auto" tries. No GPU has measured the second row yet: it is predicted."""

_PRODUCTS = ("attention", "mlp", "two_bin_attention")
"""Operators of matrix products: in fp32 the Triton kernels compute them exactly, without matrix units, and
"auto" leaves them to torch."""


def why_not(implementation: str, device_type: str, dtype: torch.dtype | None = None) -> str | None:
    """Why an implementation cannot run on a device (and, if given, in a dtype); None where it can."""
    if device_type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if dtype is not None and dtype not in DTYPES.get(implementation, _EVERY):
        return f"the {implementation} kernels do not take {str(dtype).removeprefix('torch.')}"
    if implementation == "native":
        return native.unavailable if device_type == "cpu" else f"it is for CPU tensors, not {device_type}"
    if implementation == "cuda":
        return cuda.unavailable if device_type == "cuda" else f"it is for CUDA tensors, not {device_type}"
    if implementation == "triton":
        return triton.why_not(device_type)
    if implementation == "cublaslt":
        return cublaslt.why_not(device_type)
    return attention_backends.why_not(implementation, device_type)


def choose(
    op: str,
    implementation: str,
    device: torch.device,
    dtype: torch.dtype | None = None,
    unfit: str | None = None,
) -> str:
    """The implementation to run. An explicit choice that cannot run is an error, never another one.

    unfit: an implementation that does not take these arguments, which "auto" leaves out.
    """
    known = IMPLEMENTATIONS[op]
    if implementation == "auto":
        left_out = {unfit} | ({"triton"} if op in _PRODUCTS and dtype == torch.float32 else set())
        for name in _AUTO.get(device.type, ()):
            if name in known and name not in left_out and not why_not(name, device.type, dtype):
                return name
        return known[-1]
    if implementation not in known:
        raise ValueError(f"{op}: implementation={implementation!r} must be one of {('auto', *known)}")
    reason = why_not(implementation, device.type, dtype)
    if reason is not None:
        raise NotAvailable(f"{op}: implementation={implementation!r} is not available: {reason}")
    return implementation


def capabilities() -> list[dict]:
    """Every operator x implementation x device type: `dtypes` it takes, whether it is `available` here and,
    where it is not, the `reason`; `auto`, the dtypes for which it is what "auto" chooses."""
    rows = []
    for op, names in IMPLEMENTATIONS.items():
        for device in ("cpu", "cuda"):
            chosen = {dtype: choose(op, "auto", torch.device(device), dtype) for dtype in _EVERY}
            for name in names:
                reason = why_not(name, device)
                rows.append({
                    "op": op,
                    "implementation": name,
                    "device": device,
                    "dtypes": [_short(dtype) for dtype in DTYPES.get(name, _EVERY)],
                    "available": reason is None,
                    "reason": reason,
                    "auto": [_short(d) for d in _EVERY if reason is None and chosen[d] == name],
                })  # fmt: skip
    return rows


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
