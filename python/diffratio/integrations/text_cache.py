"""What a model computes from its text alone, kept from one step of a sampling loop to the next."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.embeddings import PixArtAlphaTextProjection
from torch import Tensor, nn
from torch.utils.weak import WeakIdRef

from .spec import hooked, plain_linear

KEPT_TEXTS = 2
"""A sampler that calls the model once with and once without its prompt alternates between two texts."""

_MASK = "encoder_attention_mask"
_mask_position = list(inspect.signature(PixArtTransformer2DModel.forward).parameters)[1:].index(_MASK)


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
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _surroundings(device: torch.device) -> tuple:
    """What else a product depends on: autocast, and the stream on which its result is ready."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type), stream


@dataclass(eq=False)
class _Caption:
    """Stands in for `module.forward` of a caption projection."""

    module: PixArtAlphaTextProjection
    cache: TextCache | None


def _project_caption(caption: _Caption, text: Tensor) -> Tensor:
    module, cache = caption.module, caption.cache

    def project():
        return PixArtAlphaTextProjection.forward(module, text)

    linears = [module.linear_1, module.linear_2]
    if cache is None or not usable(module) or any(map(plain_linear, linears)) or hooked(module.act_1):
        return project()
    return cache(project, text, *parameters_of(linears))


def usable(module: nn.Module) -> bool:
    """Whether `module` may take results of earlier calls: not in training, with gradients or while traced."""
    return not (torch.compiler.is_compiling() or torch.is_grad_enabled() or module.training)


def parameters_of(linears: list[nn.Linear]) -> list[Tensor]:
    """Weights and biases."""
    return [p for linear in linears for p in (linear.weight, linear.bias) if p is not None]


class ModelText:
    """The caches of a model that lie outside of its blocks.

    PixArt makes a new tensor of the text (its caption projection) and of the text mask in every call. Here it
    makes one per text and one per mask, so that the blocks are given the same memory in every step.
    """

    def __init__(self, model: nn.Module):
        self._mask = TextCache() if type(model).forward is PixArtTransformer2DModel.forward else None
        self._caption = None
        caption = model._modules.get("caption_projection")
        if type(caption) is PixArtAlphaTextProjection and hooked(caption) is None:
            self._caption = TextCache()
            caption.forward = MethodType(_project_caption, _Caption(caption, self._caption))

    def __reduce__(self):
        return type(None), ()

    def arguments(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The arguments of a call with its mask [B, M] as the bias [B, 1, M] that PixArt would make of it."""
        mask = kwargs.get(_MASK, args[_mask_position] if len(args) > _mask_position else None)
        if self._mask is None or not isinstance(mask, Tensor) or mask.dim() != 2 or not usable(model):
            return None
        dtype = (args[0] if args else kwargs["hidden_states"]).dtype
        bias = self._mask(lambda: ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1), mask, facts=(dtype,))
        if _MASK in kwargs:
            return args, kwargs | {_MASK: bias}
        return (*args[:_mask_position], bias, *args[_mask_position + 1 :]), kwargs

    def clear(self) -> None:
        """Forget everything."""
        for cache in (self._mask, self._caption):
            if cache is not None:
                cache.clear()


def restore_caption(model: nn.Module) -> None:
    """Take off what `ModelText` put on the caption projection."""
    caption = model._modules.get("caption_projection")
    if caption is not None and getattr(vars(caption).get("forward"), "__func__", None) is _project_caption:
        del caption.forward
