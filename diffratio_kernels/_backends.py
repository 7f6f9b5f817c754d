"""Which backend of an operator runs: the fastest that can, or exactly the one asked for.

A backend of an operator is the module of its name in the operator's folder: `ops/adaln/cpu.py`. All of them
have the same functions with the same arguments. Libraries that attend in one bin only have none in the folder
of `two_bin_attention`, which calls them twice."""

import importlib.util
from functools import cache
from types import ModuleType

import torch

from . import _native, _triton

BACKENDS = {
    "route": ("cpu", "cuda", "triton", "reference"),
    "gather_adaln": ("cpu", "cuda", "triton", "reference"),
    "adaln": ("cpu", "cuda", "triton", "reference"),
    "qk_norm_rope": ("cpu", "cuda", "triton", "reference"),
    "gate_residual": ("cpu", "cuda", "triton", "reference"),
    "attention": ("triton", "sdpa", "cudnn", "varlen", "flash_attn", "reference"),
    "mlp": ("cublaslt", "triton", "reference"),
    "activation": ("cpu", "cuda", "triton", "reference"),
    "scatter_rescale": ("cpu", "cuda", "triton", "reference"),
    "mod_block": ("cpu", "cuda", "triton", "reference"),
    "two_bin_attention": ("triton", "sdpa", "cudnn", "varlen", "flash_attn", "reference"),
    "two_bin_gelu": ("cpu", "cuda", "triton", "reference"),
    "two_bin_blend": ("cpu", "cuda", "triton", "reference"),
    "two_bin_block": ("cpu", "cuda", "triton", "reference"),
}
"""Operator -> its backends. The last one runs everywhere."""

_EVERY = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HALF = (torch.bfloat16, torch.float16)
DTYPES = {
    "cuda": _EVERY[:3],
    "triton": _EVERY[:3],
    "cublaslt": _HALF,
    "cudnn": _HALF,
    "varlen": _HALF,
    "flash_attn": _HALF,
}
"""Backend -> dtypes it takes; those not listed take every float dtype."""

_AUTO = {
    "cpu": ("cpu", "sdpa", "reference"),
    "cuda": ("cuda", "cublaslt", "triton", "sdpa", "reference"),
}
"""Device type -> the order in which "auto" tries. On a GPU attention and products are chosen by shape instead
(_choice.py); the rest of the second row no GPU has measured yet."""

_PACKAGES = {"varlen": "torch.nn.attention.varlen", "flash_attn": "flash_attn"}
"""Backend -> what must be installed."""

OWN = ("cpu", "cuda", "triton")
"""Backends that autograd does not see through: kernels of this package."""

_PRODUCTS = ("attention", "mlp", "two_bin_attention")
"""Operators of matrix products: in fp32 the Triton kernels compute them exactly, without matrix units, and
"auto" leaves them to torch."""


class NotAvailable(ValueError):
    """A backend was asked for by name that this device, dtype or installation does not have."""


@cache
def kernels(folder: str, backend: str) -> ModuleType:
    """The module of a backend in an operator's folder. Triton's are imported here, at the first launch."""
    return importlib.import_module(f"{__package__}.ops.{folder}.{backend}")


def unavailable_reason(backend: str, device_type: str, dtype: torch.dtype | None = None) -> str | None:
    """Why a backend cannot run on a device (and, if given, in a dtype); None where it can."""
    if device_type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if dtype is not None and dtype not in DTYPES.get(backend, _EVERY):
        return f"the {backend} kernels do not take {_short(dtype)}"
    if backend == "triton":
        return _triton.unavailable_reason(device_type)
    if backend == "cpu":
        return _native.unavailable if device_type == "cpu" else f"it is for CPU tensors, not {device_type}"
    if backend in ("reference", "sdpa"):
        return None
    if device_type != "cuda":  # cuda, cublaslt and the libraries
        return f"it is for CUDA tensors, not {device_type}"
    if backend == "cuda":
        return _native.cuda_unavailable or _triton.too_old()
    return None if backend == "cublaslt" else _triton.too_old() or _missing(backend)


def _missing(backend: str) -> str | None:
    """Why a library of attention cannot be had, None where it can."""
    if backend == "cudnn":
        return None if torch.backends.cudnn.is_available() else "this torch has no cuDNN"
    if backend == "varlen" and torch.__version__ < (2, 11):
        return f"torch {torch.__version__} has no torch.nn.attention.varlen with a scale (2.11 or later)"
    package = _PACKAGES.get(backend)
    if package is None or importlib.util.find_spec(package):
        return None
    return f"{package} is not installed"


def choose(
    op: str, backend: str, device: torch.device, dtype: torch.dtype | None = None, unfit: str | None = None
) -> str:
    """The backend to run. An explicit choice that cannot run is an error, never another one.

    Args:
        op: an operator of BACKENDS.
        backend: "auto", or one of its backends.
        device, dtype: of the tensors.
        unfit: a backend that does not take these arguments, which "auto" leaves out.

    Raises:
        ValueError: no backend of this operator.
        NotAvailable: it cannot run here.
    """
    known = BACKENDS[op]
    if backend == "auto":
        exact = "triton" if op in _PRODUCTS and dtype == torch.float32 else None
        for name in _AUTO.get(device.type, ()):
            if (
                name in known
                and name not in (unfit, exact)
                and not unavailable_reason(name, device.type, dtype)
            ):
                return name
        return known[-1]
    if backend not in known:
        raise ValueError(f"{op}: backend={backend!r} must be one of {('auto', *known)}")
    reason = unavailable_reason(backend, device.type, dtype)
    if reason is not None:
        raise NotAvailable(f"{op}: backend={backend!r} is not available: {reason}")
    return backend


def capabilities() -> list[dict]:
    """Every operator x backend x device type. `auto` is what is taken without a look at the shape, which
    decides about attention and products on a GPU (_choice.py).

    Returns:
        Rows with `op`, `backend`, `device`, the `dtypes` it takes, whether it is `available` here and, where
        it is not, the `reason`; `auto`, the dtypes for which it is what "auto" chooses.

    Example:
        >>> here = [row["backend"] for row in capabilities() if row["op"] == "mlp" and row["available"]]
        >>> "reference" in here
        True
    """
    rows = []
    for op, names in BACKENDS.items():
        for device in ("cpu", "cuda"):
            chosen = {dtype: choose(op, "auto", torch.device(device), dtype) for dtype in _EVERY}
            for name in names:
                reason = unavailable_reason(name, device)
                rows.append({
                    "op": op,
                    "backend": name,
                    "device": device,
                    "dtypes": [_short(dtype) for dtype in DTYPES.get(name, _EVERY)],
                    "available": reason is None,
                    "reason": reason,
                    "auto": [_short(d) for d in _EVERY if reason is None and chosen[d] == name],
                })  # fmt: skip
    return rows


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
