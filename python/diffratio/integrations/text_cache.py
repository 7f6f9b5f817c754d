"""What a model computes from its text alone, kept from one step of a sampling loop to the next."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdRef

from diffratio_kernels.ops import autocast_is_on

KEPT_TEXTS = 2
"""A sampler that calls the model once with and once without its prompt alternates between two texts."""


@dataclass(eq=False)
class _Entry:
    key: tuple
    storages: list[WeakIdRef]
    value: Tensor
    version: int


class TextCache:
    """`cache(compute, *tensors)`: what `compute()` gave for these tensors before, for the last two sets.

    A tensor is told by its memory, its place in it and torch's count of its in-place changes; memory that is
    released takes its entry along. Tensors without that count (made under `torch.inference_mode`) and
    tensors of other classes are computed with in every call, as are calls inside of a CUDA graph's capture:
    a replay must read the text that it finds. A copy of a model gets None in place of its cache.
    """

    def __init__(self):
        self._entries: list[_Entry] = []

    def __reduce__(self):
        return type(None), ()

    def __call__(self, compute: Callable[[], Tensor], *tensors: Tensor, facts: tuple = ()) -> Tensor:
        if capturing() or any(type(t) not in (Tensor, nn.Parameter) or t.is_inference() for t in tensors):
            return compute()
        cache = weakref.ref(self)
        storages = [
            WeakIdRef(t.untyped_storage(), lambda _: cache() and cache().drop_dead()) for t in tensors
        ]
        marks = [(t._version, t.storage_offset(), t.shape, t.stride(), t.dtype) for t in tensors]
        key = (*storages, *marks, *facts, *_surroundings(tensors[0].device))
        for entry in self._entries:
            # The value's own version: a hook on the caption projection may write into what it is given.
            if entry.key == key and entry.value._version == entry.version:
                return entry.value
        with torch.inference_mode(False), torch.no_grad():
            value = compute()
        others = [entry for entry in self._entries if entry.key != key]
        self._entries = [*others[1 - KEPT_TEXTS :], _Entry(key, storages, value, value._version)]
        return value

    def __len__(self) -> int:
        return len(self._entries)

    def drop_dead(self) -> None:
        """Forget the entries of which some tensor's memory is released."""
        self._entries = [e for e in self._entries if all(storage() is not None for storage in e.storages)]

    def clear(self) -> None:
        """Forget everything."""
        self._entries = []


def capturing() -> bool:
    """Whether the current CUDA stream is being captured into a graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _surroundings(device: torch.device) -> tuple:
    """What else a product depends on: autocast, and the stream on which its result is ready."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    autocast = torch.get_autocast_dtype(device.type) if autocast_is_on(device) else None
    return autocast, stream


def usable(module: nn.Module) -> bool:
    """Whether `module` may take results of earlier calls: not in training, with gradients or while traced."""
    return not (torch.compiler.is_compiling() or torch.is_grad_enabled() or module.training)


def parameters_of(linears: list[nn.Linear]) -> list[Tensor]:
    """Weights and biases."""
    return [p for linear in linears for p in (linear.weight, linear.bias) if p is not None]
