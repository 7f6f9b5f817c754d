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


def empty_selection(
    logits: Tensor, counts: list[int], counts_small: list[int] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int | None]:
    """What a selection by one kernel fills and reads on the device: index, cu_seqlens, row_map, small counts.

    The last is the equal count of all samples, for which the kernel writes cu_seqlens too, else None.
    """
    (batch, tokens), device = logits.shape, logits.device
    index = torch.empty(sum(counts), dtype=torch.int64, device=device)
    row_map = torch.empty(logits.numel(), dtype=torch.int32, device=device)
    small = None if counts_small is None else copied_cu_seqlens(counts_small, device).diff()
    if tokens > 0 and len(set(counts)) == 1:
        cu_seqlens = torch.empty(batch + 1, dtype=torch.int32, device=device)
        return index, cu_seqlens, row_map, small, counts[0]
    return index, copied_cu_seqlens(counts, device), row_map, small, None


def cu_seqlens_for(counts: list[int], like: Tensor) -> Tensor:
    """`copied_cu_seqlens` on the device of `like`; a traced one gets no tensor that was made before, and
    leaves none."""
    return (copied_cu_seqlens if type(like) is Tensor else cu_seqlens_of)(counts, like.device)
