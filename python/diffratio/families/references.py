"""Reference images: where a pipeline puts their tokens behind those of the image that is made (Kontext,
FLUX.2), they are kept always."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

COMPILED = (
    "img_ids: there are tokens of reference images, and a model that is compiled as a whole cannot see where "
    "they begin; compile its blocks (compile_repeated_blocks)"
)

_seen = WeakTensorKeyDictionary()
"""Tensor -> (its version, what was read in it by a name)."""


@torch.compiler.disable(
    reason="the host reads where the image's tokens are: compile the blocks, not the model"
)
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
        axis: the one with a number for the image that is made, which comes first, and another number for
            each reference.
    """
    if ids is None or ids.is_meta:
        return None
    if torch.compiler.is_compiling():
        torch._assert_async((ids[..., axis] == ids[..., :1, axis]).all(), COMPILED)
        return None

    def before_references(ids: Tensor) -> int | None:
        own = (ids[..., axis] == ids[..., :1, axis]).reshape(-1, ids.shape[-2])[0]
        count = int(own.sum())
        if not bool(own[:count].all()):
            raise ValueError("img_ids: tokens of reference images stand among those of the image")
        return None if count in (0, own.shape[0]) else count

    return read_once(("target_tokens", axis), before_references, ids)


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
