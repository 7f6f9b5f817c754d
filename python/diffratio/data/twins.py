"""Two objects alike, of which the text says nothing: who repaints one of them must have seen the other."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .randomness import uniforms
from .shapes import ATTRIBUTES, Shapes, attributes_of, covered, painted

_RADIUS, _OFFSET, _JITTER = 0.15, 0.25, 0.03
"""In sides of the image. A square around one twin's mask, a sixteenth larger, shows none of the other."""
_NUMBERS = 26  # uniform numbers that decide one image: those of shapes, and the other twin's place


class Twins(Shapes):
    """Shapes' objects and backgrounds; an object in one quarter of the image, its twin in the opposite one.

    The masks are the first object's quarter but for its edge: they do not tell its shape. The text is that
    of shapes for the background alone. The attributes are shape and colour, of both.
    """

    attribute_names = ("shape", "colour")
    attribute_sizes = tuple(len(ATTRIBUTES[name]) for name in attribute_names)

    def __init__(self, split: str, resolution: int | None = None, seed: int = 0) -> None:
        super().__init__(split, resolution, seed)
        self.name = self.name.replace("shapes", "twins")

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        numbers = self._numbers(indices)
        attributes = attributes_of(numbers)
        quarter, inside = attributes[:, 3], torch.zeros(len(numbers), self.size, self.size)
        for place, jitter in ((quarter, numbers[:, 5:7]), (3 - quarter, numbers[:, 24:26])):
            centre = (2 * _corner(place) - 1) * _OFFSET + _JITTER * (2 * jitter - 1)
            radius = torch.full((len(numbers),), _RADIUS)
            inside = inside.maximum(covered(attributes[:, 0], centre, radius, self.size))
        return {
            "pixel_values": painted(attributes, numbers, inside),
            "tokens": self.embed(attributes),
            "attributes": attributes[:, :2],
        }

    def captions(self, indices: Sequence[int] | Tensor) -> list[str]:
        backgrounds = attributes_of(self._numbers(indices))[:, 2].tolist()
        return [f"twins on {ATTRIBUTES['background'][value]}" for value in backgrounds]

    def masks(self, indices: Sequence[int] | Tensor) -> Tensor:
        half, edge = self.size // 2, self.size // 32
        masks = torch.zeros(len(indices), self.size, self.size)
        corners = half * _corner(attributes_of(self._numbers(indices))[:, 3]).long()
        for mask, (left, top) in zip(masks, corners.tolist(), strict=True):
            mask[top + edge : top + half - edge, left + edge : left + half - edge] = 1
        return masks

    def encode(self, captions: Sequence[str]) -> Tensor:
        attributes = torch.zeros(len(captions), len(ATTRIBUTES), dtype=torch.int64)
        values = ATTRIBUTES["background"]
        for row, caption in enumerate(captions):
            said = [
                place for place, value in enumerate(values) if re.search(rf"\b{value}\b", caption.lower())
            ]
            if len(said) != 1:
                raise ValueError(f"prompt={caption!r} must name one background: {', '.join(values)}")
            attributes[row, 2] = said[0]
        return self.embed(attributes)

    def embed(self, attributes: Tensor) -> Tensor:
        """Return the text of int64 ``attributes`` ``[n, 5]``, of the background alone: ``[n, 5, 64]``."""
        told = self.null_tokens.repeat(len(attributes), 1, 1)
        told[:, 2] = super().embed(attributes)[:, 2]
        return told

    def _numbers(self, indices: Sequence[int] | Tensor) -> Tensor:
        return uniforms(self._seed, self._items(indices), _NUMBERS).float()


class MaskedTwins(Twins):
    """What lies in the masks of twins, on grey: one object each, to train a judge of what is painted."""

    def __init__(self, split: str, resolution: int | None = None, seed: int = 0) -> None:
        super().__init__(split, resolution, seed)
        self.name += "-masked"

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        batch = super().batch(indices)
        return batch | {"pixel_values": batch["pixel_values"] * self.masks(indices)[:, None]}


def _corner(quarter: Tensor) -> Tensor:
    """Of int64 [n] the quarter's place from the left and from the top, 0 or 1: float32 [n, 2]."""
    return torch.stack([quarter % 2, quarter // 2], dim=1).float()
