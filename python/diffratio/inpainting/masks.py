"""Masks of what is repainted, each a function of a seed and the sample's number."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.randomness import uniforms

KINDS = ("object", "dilated", "box", "strokes")
"""What the data set says the object covers, that with a margin, a box, lines of a brush."""
_NUMBERS = 32  # uniform numbers that decide one mask
_CORNERS = 8  # of a line, at most
_SIDES = (0.2, 0.7)  # of a box, in sides of the picture
_BRUSH = (0.04, 0.12)  # its radius
_MARGIN = (0.03, 0.12)  # around an object


def draw_masks(
    kind: str, items: Tensor, side: int, *, seed: int = 0, objects: Tensor | None = None
) -> Tensor:
    """Masks of samples, none of them empty.

    Args:
        kind: one of `KINDS`, or "mixed": each sample one of those that can be drawn, by chance.
        items: int64 [n], the numbers of the samples.
        side: of the pictures.
        seed: of the masks.
        objects: what the objects cover [n, side, side], of `CaptionedDataset.masks`; for "object" and
            "dilated". A sample whose object is nowhere gets a box.

    Returns:
        [n, 1, side, side] bool; of each sample a function of kind, seed, number, side and its object alone.

    Raises:
        ValueError: an unknown kind, or one that needs objects where there are none.

    Example:
        >>> draw_masks("box", torch.arange(3), 32).shape
        torch.Size([3, 1, 32, 32])
    """
    if kind not in (*KINDS, "mixed"):
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)} or mixed")
    if objects is None and kind in ("object", "dilated"):
        raise ValueError(f"kind={kind!r} needs objects, and the data set has no masks of them")
    possible = KINDS if objects is not None else KINDS[2:]
    numbers, masks = uniforms(seed, items, _NUMBERS), []
    for row, draws in enumerate(numbers.tolist()):
        first, *draws = draws
        own = possible[int(first * len(possible))] if kind == "mixed" else kind
        covered = None if objects is None else objects[row] > 0
        if own in ("object", "dilated") and not covered.any():
            own = "box"
        masks.append(_draw(own, draws, side, covered))
    return torch.stack(masks)[:, None] if masks else torch.empty(0, 1, side, side, dtype=torch.bool)


def _draw(kind: str, draws: list[float], side: int, covered: Tensor | None) -> Tensor:
    """[side, side] bool"""
    if kind == "object":
        return covered
    if kind == "dilated":
        return dilated(covered, max(1, round(_between(_MARGIN, draws[0]) * side)))
    return (_box if kind == "box" else _strokes)(draws, side)


def _between(ends: tuple[float, float], draw: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * draw


def dilated(mask: Tensor, radius: int) -> Tensor:
    """mask [..., H, W] bool and all that is at most `radius` away along both axes."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return (F.max_pool2d(flat, 2 * radius + 1, stride=1, padding=radius) > 0).view(mask.shape)


def _box(draws: list[float], side: int) -> Tensor:
    height, width = (max(1, round(_between(_SIDES, draw) * side)) for draw in draws[:2])
    top, left = int(draws[2] * (side - height + 1)), int(draws[3] * (side - width + 1))
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


def _strokes(draws: list[float], side: int) -> Tensor:
    """What a round brush covers along a line of three corners or more."""
    radius = _between(_BRUSH, draws[0]) * side
    corners = 3 + int(draws[1] * (_CORNERS - 2))
    points = torch.tensor(draws[2 : 2 + 2 * corners]).view(corners, 2) * side
    centres = torch.arange(side) + 0.5
    pixels = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1)  # [side, side, 2]
    mask = torch.zeros(side, side, dtype=torch.bool)
    for start, end in zip(points[:-1], points[1:], strict=True):
        along = end - start
        part = ((pixels - start) @ along / along.square().sum().clamp(min=1e-12)).clamp(0, 1)
        mask |= (pixels - start - part[..., None] * along).norm(dim=-1) <= max(radius, 1.0)
    return mask


def pooled(mask: Tensor, factor: int) -> Tensor:
    """Which cells of factor x factor pixels a mask [B, 1, H, W] touches, [B, 1, H / factor, W / factor] bool.

    Raises:
        ValueError: factor does not divide the sides.
    """
    if mask.shape[-1] % factor or mask.shape[-2] % factor:
        raise ValueError(f"mask is {mask.shape[-2]} x {mask.shape[-1]}, whose sides {factor} must divide")
    return F.max_pool2d(mask.float(), factor) > 0


def token_mask(mask: Tensor, patch: int) -> Tensor:
    """Which tokens a mask [B, 1, H, W] touches, [B, N] bool."""
    return pooled(mask, patch).flatten(1)


def grown(mask: Tensor, patch: int) -> Tensor:
    """The patches that a mask [B, 1, H, W] touches, whole: [B, 1, H, W] bool."""
    cells = pooled(mask, patch)
    return cells.repeat_interleave(patch, dim=-2).repeat_interleave(patch, dim=-1)
