"""Captioned shapes, drawn when asked for: one object on a background, so that some tokens matter more."""

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .captioned import CaptionedDataset, check_split
from .randomness import embedding, uniforms

ATTRIBUTES = {
    "shape": ("circle", "square", "triangle", "cross"),
    "colour": ("red", "green", "blue", "yellow", "magenta", "cyan"),
    "background": ("gradient", "stripes", "checks", "clouds"),
    "position": ("upper left", "upper right", "lower left", "lower right"),
    "size": ("small", "large"),
}
LENGTHS = {"train": 100_000, "held_out": 2048}
SIZE = 32
PATCH_SIZE = 4
TOKEN_WIDTH = 64

_COLOURS = torch.tensor(
    [(0.9, 0.1, 0.1), (0.1, 0.7, 0.1), (0.1, 0.2, 0.9), (0.95, 0.85, 0.1), (0.85, 0.1, 0.8), (0.1, 0.8, 0.85)]
)
_RADII = torch.tensor([0.19, 0.28])  # of the image's side, as all lengths below
_OFFSET = 0.17
_JITTER = 0.03
_COLOUR_JITTER = 0.06
_NUMBERS = 24  # uniform numbers that decide one image


class Shapes(CaptionedDataset):
    """An image shows one of 4 shapes x 6 colours x 4 backgrounds x 4 positions x 2 sizes.

    Item i of a split is a function of ``(seed, i)``: anti-aliased from the signed distance to the outline.
    The text is one token per attribute, a frozen random embedding of its value.
    """

    channels = 3
    patch_size = PATCH_SIZE
    text_tokens = len(ATTRIBUTES)
    text_width = TOKEN_WIDTH
    attribute_names = tuple(ATTRIBUTES)
    attribute_sizes = tuple(len(values) for values in ATTRIBUTES.values())

    def __init__(self, split: str, resolution: int | None = None, seed: int = 0) -> None:
        check_split(split)
        self.size = SIZE if resolution is None else resolution
        if self.size % PATCH_SIZE or self.size < 4 * PATCH_SIZE:
            raise ValueError(
                f"resolution must be a multiple of {PATCH_SIZE} from {4 * PATCH_SIZE} on, got {resolution}"
            )
        self.name = "shapes" if self.size == SIZE else f"shapes-{self.size}"
        self.split = split
        self._seed = 2 * seed + (split == "held_out")
        self.null_tokens = torch.stack([embedding(f"no {name}", TOKEN_WIDTH) for name in ATTRIBUTES])
        self._tokens = [
            torch.stack([embedding(f"{name} {value}", TOKEN_WIDTH) for value in values])
            for name, values in ATTRIBUTES.items()
        ]

    def __len__(self) -> int:
        return LENGTHS[self.split]

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        numbers = self._numbers(indices)
        attributes = attributes_of(numbers)
        return {
            "pixel_values": painted(attributes, numbers, _coverage(attributes, numbers, self.size)),
            "tokens": self.embed(attributes),
            "attributes": attributes,
        }

    def captions(self, indices: Sequence[int] | Tensor) -> list[str]:
        rows = attributes_of(self._numbers(indices)).tolist()
        named = [[values[v] for values, v in zip(ATTRIBUTES.values(), row, strict=True)] for row in rows]
        return [
            f"a {size} {colour} {shape} in the {position} on {background}"
            for shape, colour, background, position, size in named
        ]

    def masks(self, indices: Sequence[int] | Tensor) -> Tensor:
        numbers = self._numbers(indices)
        return _coverage(attributes_of(numbers), numbers, self.size)

    def encode(self, captions: Sequence[str]) -> Tensor:
        return self.embed(torch.tensor([_named(caption) for caption in captions]))

    def embed(self, attributes: Tensor) -> Tensor:
        """Return the text of int64 ``attributes`` ``[n, 5]``: float32 ``[n, 5, 64]``."""
        return torch.stack([table[attributes[:, a]] for a, table in enumerate(self._tokens)], dim=1)

    def _numbers(self, indices: Sequence[int] | Tensor) -> Tensor:
        return uniforms(self._seed, self._items(indices), _NUMBERS).float()


def _named(caption: str) -> list[int]:
    """Which value of each attribute a caption names."""
    words, found = " ".join(re.findall(r"\w+", caption.lower())), []
    for name, values in ATTRIBUTES.items():
        said = [place for place, value in enumerate(values) if re.search(rf"\b{value}\b", words)]
        if len(said) != 1:
            raise ValueError(f"prompt={caption!r} must name one {name}: {', '.join(values)}")
        found += said
    return found


def attributes_of(numbers: Tensor) -> Tensor:
    # A float32 number may round up to 1.
    sizes = torch.tensor(Shapes.attribute_sizes)
    return (numbers[:, : len(sizes)] * sizes).long().minimum(sizes - 1)


def _pixels(size: int) -> tuple[Tensor, Tensor]:
    """x and y ``[size, size]`` of the pixels' centres, in image sides from the image's centre."""
    centres = (torch.arange(size) + 0.5) / size - 0.5
    return centres.expand(size, size), centres[:, None].expand(size, size)


def painted(attributes: Tensor, numbers: Tensor, inside: Tensor) -> Tensor:
    """float32 [n, 3, size, size] in [-1, 1]: the object's colour where ``inside`` [n, size, size] is 1, the
    background where it is 0."""
    jitter = _COLOUR_JITTER * (2 * numbers[:, 7:10] - 1)
    colour = (_COLOURS[attributes[:, 1]] + jitter)[:, :, None, None]
    background = _background(attributes[:, 2], numbers[:, 10:24], inside.shape[-1])
    return 2 * torch.lerp(background, colour, inside[:, None]).clamp(0, 1) - 1


def _coverage(attributes: Tensor, numbers: Tensor, size: int) -> Tensor:
    """The part of each pixel inside of the outline, float32 [n, size, size]."""
    position = attributes[:, 3]
    centre = torch.stack([position % 2, position // 2], dim=1) * (2 * _OFFSET) - _OFFSET
    centre = centre + _JITTER * (2 * numbers[:, 5:7] - 1)
    return covered(attributes[:, 0], centre, _RADII[attributes[:, 4]], size)


def covered(shapes: Tensor, centre: Tensor, radius: Tensor, size: int) -> Tensor:
    """The part of each pixel inside of shapes int64 [n], float32 [n, size, size]; ``centre`` [n, 2] from the
    image's and ``radius`` [n] in image sides."""
    (x, y), centre, radius = _pixels(size), centre[:, :, None, None], radius[:, None, None]
    distance = torch.empty(len(shapes), size, size)
    for shape, outline in enumerate(_OUTLINES):
        rows = shapes == shape
        distance[rows] = outline(x - centre[rows, 0], y - centre[rows, 1], radius[rows])
    return (0.5 - distance * size).clamp(0, 1)


def _box(x: Tensor, y: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    x, y = x.abs() - half_width, y.abs() - half_height
    return torch.hypot(x.clamp(min=0), y.clamp(min=0)) + torch.maximum(x, y).clamp(max=0)


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return _box(x, y, 0.88 * radius, 0.88 * radius)


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    # Three half planes around the centre of mass, which lies 0.3 radii below the middle; the tip points up.
    y = y - 0.3 * radius
    sides = torch.maximum(math.sqrt(0.75) * x.abs() - 0.5 * y, y)
    return sides - 0.6 * radius


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    long, short = 1.05 * radius, 0.35 * radius
    return torch.minimum(_box(x, y, long, short), _box(x, y, short, long))


# Signed distances to the outline of shape 0, 1, ..., negative inside.
_OUTLINES: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (_circle, _square, _triangle, _cross)


def _background(kind: Tensor, numbers: Tensor, size: int) -> Tensor:
    """Muted colours with a faint texture, float32 [n, 3, size, size]; ``numbers`` [n, 14]."""
    x, y = _pixels(size)
    numbers = numbers[:, :, None, None]

    def wave(angle: Tensor, waves: float, phase: Tensor) -> Tensor:
        along = torch.cos(angle) * x + torch.sin(angle) * y
        return torch.sin(2 * torch.pi * (waves * along + phase))

    angle, phase = 2 * torch.pi * numbers[:, 0], numbers[:, 1]
    grey = 0.3 + 0.4 * numbers[:, 2]
    tint = 0.16 * (numbers[:, 3:6] - 0.5)
    slope = 0.3 * (torch.cos(angle) * x + torch.sin(angle) * y)
    crossing = wave(angle, 4.0, phase) * wave(angle + torch.pi / 2, 4.0, numbers[:, 6])
    clouds = sum(wave(2 * torch.pi * numbers[:, 7 + i], 1.5, numbers[:, 10 + i]) for i in range(3))
    textures = torch.stack([0 * crossing, wave(angle, 4.0, phase), crossing, 0.6 * clouds])
    texture = textures[kind, torch.arange(len(kind))]
    return (grey + slope + 0.07 * texture)[:, None] + tint
