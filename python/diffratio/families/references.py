"""Reference images: where a pipeline puts their tokens behind those of the image that is made (Kontext,
FLUX.2), they are kept always."""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_seen = WeakTensorKeyDictionary()
"""ids -> (version, tokens): a pipeline gives every step the same ids, which are read once."""


def target_tokens(ids: Tensor | None, axis: int = 0) -> int | None:
    """How many of the tokens come before the first reference; None: all, there is none.

    Args:
        ids: [N, axes] or [B, N, axes], what the model embeds as positions.
        axis: the one with a number for the image that is made, which comes first, and another number for
            each reference.
    """
    if ids is None or torch.compiler.is_compiling() or ids.is_meta:
        return None
    version = None if ids.is_inference() else ids._version
    known = _seen.get(ids)
    if known is None or known[0] != version:
        own = (ids[..., axis] == ids[..., :1, axis]).reshape(-1, ids.shape[-2])[0]
        count = int(own.sum())
        if not bool(own[:count].all()):
            raise ValueError("img_ids: tokens of reference images stand among those of the image")
        known = version, None if count in (0, own.shape[0]) else count
        _seen[ids] = known
    return known[1]
