"""What a model computes from its text alone, kept from one step of a sampling loop to the next."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from diffratio_kernels._autocast import autocast_is_on

from .text_mask import capturing

KEPT_TEXTS = 2
"""A sampler that calls the model once with and once without its prompt alternates between two texts."""


@dataclass(slots=True)
class _Entry:
    key: tuple
    tensors: tuple[Tensor, ...]
    norms: Tensor
    """Of the tensors, when the value was computed."""
    value: Tensor
    version: int
    """The value's own: a hook on the caption projection may write into what it is given."""


class TextCache:
    """`cache(compute, *tensors)`: what `compute()` gave for these tensors before, for the last two sets.

    A tensor is told by its memory, which an entry keeps alive, and torch's count of its in-place changes;
    the context looks for changes that torch does not count.
    """

    def __init__(self):
        self._entries: list[_Entry] = []

    def __reduce__(self):
        """A copy has nothing in it."""
        return TextCache, ()

    def __len__(self) -> int:
        return len(self._entries)

    def __call__(self, compute: Callable[[], Tensor], *tensors: Tensor) -> Tensor:
        if not_now() or any(type(t) not in (Tensor, nn.Parameter) or t.is_inference() for t in tensors):
            return compute()
        device = tensors[0].device
        autocast = torch.get_autocast_dtype(device.type) if autocast_is_on(device) else None
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        key = (autocast, stream, *map(_mark, tensors))
        for entry in self._entries:
            if entry.key == key and entry.value._version == entry.version:
                return entry.value
        with torch.inference_mode(False), torch.no_grad():
            value, norms = compute(), _norms(tensors)
        others = [entry for entry in self._entries if entry.key != key]
        self._entries = [*others[1 - KEPT_TEXTS :], _Entry(key, tensors, norms, value, value._version)]
        return value

    def invalidate(self) -> None:
        """Forget everything."""
        self._entries = []

    def norms(self) -> list[tuple[Tensor, Tensor]]:
        """Of every entry's tensors: as they were when its value was computed, and as they are now."""
        return [(entry.norms, _norms(entry.tensors)) for entry in self._entries]


def _norms(tensors: tuple[Tensor, ...]) -> Tensor:
    """[len(tensors)], in float32 or wider: a change of a tensor is hardly without a change of its norm."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    with torch.no_grad():
        return torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype))


def _mark(t: Tensor) -> tuple:
    return t.data_ptr(), t._version, t.shape, t.stride(), t.dtype


def not_now() -> bool:
    """Not with gradients, while traced, or in a CUDA graph: a replay must read the text that it finds."""
    return torch.compiler.is_compiling() or torch.is_grad_enabled() or capturing()
