"""Two bins of a routed block as two passes, blended: for calls that `two_bin` does not know."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..ops.route.reference import accumulation_dtype
from ..types import PackedRows, Rescale, Run
from .routed import routed
from .stream import Call


def two_passes(
    call: Call,
    both: tuple[PackedRows, PackedRows],
    weight_large: Tensor,
    scores: tuple[Tensor, Rescale],
    run: Run,
) -> Any:
    """What the block's forward returns for both bins, blended (paper section 3.3).

    Args:
        call: the block's parts and inputs.
        both: rows of the large and of the small bin.
        weight_large: [B].
        scores: logits [B, N] of the router, and what its score multiplies.
        run: how the steps run.
    """
    alone = replace(call, output=_image_and_text)
    large, small = (routed(alone, rows, *scores, replace(run, buffer=None)) for rows in both)
    return call.output(*(_blended(a, b, weight_large) for a, b in zip(large, small, strict=True)))


def _image_and_text(image: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return image, text


def _blended(large: Tensor | None, small: Tensor | None, weight: Tensor) -> Tensor | None:
    """small + w (large - small): rows that both leave alone stay as they are, bit by bit."""
    if large is None or large is small:
        return large
    dtype = accumulation_dtype(large.dtype)
    weight = weight.to(dtype)[:, None, None]
    return torch.lerp(small.to(dtype), large.to(dtype), weight).to(large.dtype)
