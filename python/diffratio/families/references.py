"""Reference images: where a pipeline puts their tokens behind those of the image that is made (Kontext,
FLUX.2), they are kept always."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_seen = WeakTensorKeyDictionary()
"""Tensor -> (its version, what was read in it by a name)."""


@torch.compiler.disable
def read_once(name: Any, read: Callable[[Tensor], Any], tensor: Tensor) -> Any:
    """read(tensor), which waits for its values: once for all steps, which a pipeline gives the same tensor.

    Args:
        name: of what is read.
    """
    version = None if tensor.is_inference() else tensor._version
    known = _seen.get(tensor)
    if known is None or known[0] != version:
        known = _seen[tensor] = version, {}
    if name not in known[1]:
        known[1][name] = read(tensor)
    return known[1][name]


def target_tokens(ids: Tensor | None, axis: int = 0) -> int | None:
    """How many of the tokens come before the first reference; None: all, there is none.

    Args:
        ids: [N, axes] or [B, N, axes], what the model embeds as positions.
        axis: the one that is 0 for the image that is made, and another number for each reference.
    """
    if ids is None or torch.compiler.is_compiling() or ids.is_meta:
        return None

    def before_references(ids: Tensor) -> int | None:
        own = (ids[..., axis] == 0).reshape(-1, ids.shape[-2])[0]
        count = int(own.sum())
        if not bool(own[:count].all()):
            raise ValueError("img_ids: tokens of reference images stand among those of the image")
        return None if count in (0, own.shape[0]) else count

    return read_once(("target_tokens", axis), before_references, ids)
