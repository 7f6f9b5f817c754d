"""Text masks: what PixArt makes of them, and the lengths that `mod_block` takes."""

from __future__ import annotations

import inspect

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .text_cache import TextCache, capturing, usable

MASK = "encoder_attention_mask"
_position = list(inspect.signature(PixArtTransformer2DModel.forward).parameters)[1:].index(MASK)


def pixart_mask(model: nn.Module, args: tuple, kwargs: dict) -> Tensor | None:
    """The text mask that a call of a PixArt is given; None for other models."""
    if type(model).forward is not PixArtTransformer2DModel.forward:
        return None
    return kwargs.get(MASK, args[_position] if len(args) > _position else None)


class TextMask:
    """PixArt makes a new bias [B, 1, M] of its text mask [B, M] in every call; here it is one per mask."""

    def __init__(self):
        self.cache = TextCache()

    def arguments(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The arguments of a call with the bias that the model would make; None where it makes none."""
        mask = pixart_mask(model, args, kwargs)
        if mask is None or mask.dim() != 2 or not usable(model):
            return None
        dtype = (args[0] if args else kwargs["hidden_states"]).dtype
        bias = self.cache(lambda: ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1), mask, facts=(dtype,))
        if MASK in kwargs:
            return args, kwargs | {MASK: bias}
        return (*args[:_position], bias, *args[_position + 1 :]), kwargs


_checked: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Mask -> its version and `text_lengths`: the blocks of a model all get the same one."""


_fixed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Mask that a CUDA graph reads -> buffers of its `text_lengths`, filled before every replay."""


def fix_text_lengths(mask: Tensor, order: Tensor, lengths: Tensor) -> None:
    """Let `text_lengths` of a buffer be two others, whatever it holds: who fills one fills all three."""
    _fixed[mask] = order, lengths


def text_lengths(mask: Tensor, comes_again: bool = False) -> tuple[Tensor, Tensor] | None:
    """Order that puts the text tokens that count first [B, M], and how many do [B]; None for other masks.

    Attention does not depend on the order of keys, so any mask of tokens becomes a length. That takes
    [B, 1, M], bool or PixArt's additive 0 and -10000, and values that can be looked at.
    Where no token counts, the bias shifts all scores alike and every token counts.
    """
    if mask.dim() != 3 or mask.shape[1] != 1:
        return None
    if torch.compiler.is_compiling():
        return _ordered(mask[:, 0]) if mask.dtype == torch.bool else None
    if mask in _fixed:
        return _fixed[mask]
    if mask.dtype != torch.bool and not _readable(mask.device, comes_again):
        return None
    if mask.is_inference() or capturing():  # no version; a graph must look at the mask of its replay
        return _look(mask)
    version, known = _checked.get(mask, (None, None))
    if version != mask._version:
        known = _look(mask)
        _checked[mask] = mask._version, known
    return known


def _look(mask: Tensor) -> tuple[Tensor, Tensor] | None:
    with torch.inference_mode(False), torch.no_grad():  # a `TextCache` knows the order by its version
        if mask.dtype == torch.bool:
            return _ordered(mask[:, 0])
        kept = mask[:, 0] == 0
        return _ordered(kept) if bool((kept | (mask[:, 0] <= -10000)).all()) else None


def _readable(device: torch.device, comes_again: bool = False) -> bool:
    """Without a wait, or where one wait serves many blocks: in training, and for a mask that comes again."""
    return not capturing() and (device.type == "cpu" or comes_again or torch.is_grad_enabled())


def _ordered(kept: Tensor) -> tuple[Tensor, Tensor]:
    order = kept.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    lengths = kept.sum(1, dtype=torch.int32)
    return order, lengths.masked_fill(lengths == 0, kept.shape[1])
