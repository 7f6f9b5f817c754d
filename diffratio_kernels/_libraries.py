"""Which of the attention libraries are installed."""

import importlib.util

import torch

_PACKAGES = {"varlen": "torch.nn.attention.varlen", "flash_attn": "flash_attn"}


def missing(backend: str) -> str | None:
    """Why a library cannot be had, None where it can."""
    if backend == "cudnn":
        return None if torch.backends.cudnn.is_available() else "this torch has no cuDNN"
    if backend == "varlen" and torch.__version__ < (2, 11):
        return f"torch {torch.__version__} has no torch.nn.attention.varlen with a scale (2.11 or later)"
    package = _PACKAGES.get(backend)
    if package is None or importlib.util.find_spec(package):
        return None
    return f"{package} is not installed"
