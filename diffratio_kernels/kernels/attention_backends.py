"""Packed attention through other people's kernels that take offsets: cuDNN, torch's varlen, flash-attn.

Plain differentiable functions: autograd sees through them. Their signature is that of `sdpa.attention`.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import sdpa

_PACKAGES = {"varlen": "torch.nn.attention.varlen", "flash_attn": "flash_attn"}


def why_not(implementation: str, device_type: str) -> str | None:
    """Why one of these, or of torch's own, cannot run on a device; None where it can."""
    if implementation not in ("cudnn", *_PACKAGES):
        return None
    if device_type != "cuda":
        return f"it is for CUDA tensors, not {device_type}"
    if implementation == "cudnn":
        return None if torch.backends.cudnn.is_available() else "this torch has no cuDNN"
    if implementation == "varlen" and torch.__version__ < (2, 11):
        return f"torch {torch.__version__} has no torch.nn.attention.varlen with a scale (2.11 or later)"
    package = _PACKAGES[implementation]
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def _no_lengths(implementation: str, key_lengths: Tensor | None):
    if key_lengths is not None:
        raise ValueError(f"attention: implementation={implementation!r} takes no key_lengths")


def cudnn(
    query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale
) -> Tensor:  # fmt: skip
    """cuDNN through torch's scaled_dot_product_attention."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa.attention(
            query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale
        )


def varlen(
    query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale
) -> Tensor:  # fmt: skip
    """torch.nn.attention.varlen (torch 2.11 or later)."""
    from torch.nn.attention.varlen import varlen_attn

    _no_lengths("varlen", key_lengths)
    return varlen_attn(query, key, value, query_offsets, key_offsets, max_query, max_key, scale=scale)


def flash_attn(
    query, key, value, query_offsets, key_offsets, max_query, max_key, key_lengths, scale
) -> Tensor:  # fmt: skip
    """The flash-attn package."""
    from flash_attn import flash_attn_varlen_func

    _no_lengths("flash_attn", key_lengths)
    return flash_attn_varlen_func(
        query, key, value, query_offsets, key_offsets, max_query, max_key, softmax_scale=scale
    )
