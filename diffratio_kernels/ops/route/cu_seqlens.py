"""Cumulative kept counts on the device, where a CUDA graph may be captured."""

from functools import lru_cache

import torch
from torch import Tensor

from .reference import cu_seqlens_of


@lru_cache(maxsize=256)
def _copied(counts: tuple[int, ...], device: torch.device) -> Tensor:
    return cu_seqlens_of(list(counts), device)


_read_by_graphs: set[Tensor] = set()
"""Those that CUDA graphs clone in every replay: they outlive the cache."""


def copied_cu_seqlens(counts: list[int], device: torch.device) -> Tensor:
    """[0, c_0, c_0 + c_1, ...] as int32. Unequal ones are copied to the device once: a CUDA graph cannot do
    that."""
    if len(set(counts)) <= 1:
        return cu_seqlens_of(counts, device)
    copied = _copied(tuple(counts), device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _read_by_graphs.add(copied)
    return copied.clone()


def cu_seqlens_for(counts: list[int], like: Tensor) -> Tensor:
    """`copied_cu_seqlens` on the device of `like`; a traced one gets no tensor that was made before, and
    leaves none."""
    return (copied_cu_seqlens if type(like) is Tensor else cu_seqlens_of)(counts, like.device)
