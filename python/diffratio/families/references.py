"""Reference images: where a pipeline puts their tokens behind those of the image that is made (Kontext,
FLUX.2), they are kept always."""

from math import prod

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_seen = WeakTensorKeyDictionary()
"""ids -> (version, tokens): a pipeline gives every step the same ids, which are read once."""


def target_tokens(ids: Tensor | None, axis: int = 0) -> int | None:
    """How many of the tokens come before the first reference; None: all, there is none.

    Args:
        ids: [N, axes] or [B, N, axes], what the model embeds as positions.
        axis: the one that is 0 for the image that is made, and another number for each reference.
    """
    if ids is None or torch.compiler.is_compiling() or ids.is_meta:
        return None
    version = None if ids.is_inference() else ids._version
    known = _seen.get(ids)
    if known is None or known[0] != version:
        own = (ids[..., axis] == 0).reshape(-1, ids.shape[-2])[0]
        count = int(own.sum())
        if not bool(own[:count].all()):
            raise ValueError("img_ids: tokens of reference images stand among those of the image")
        known = version, None if count in (0, own.shape[0]) else count
        _seen[ids] = known
    return known[1]


def target_of_shapes(shapes, layered: bool = False) -> int | None:
    """The same of shapes (frames, height, width) in tokens.

    Args:
        shapes: of each sample, one or a list that begins with the image that is made; all samples are alike.
        layered: whether only the last one is a reference: the others are layers of the image.
    """
    sample = shapes[0] if shapes else ()
    if len(sample) < 2 or not isinstance(sample[0], (tuple, list)):
        return None
    return sum(map(prod, sample[:-1] if layered else sample[:1]))
