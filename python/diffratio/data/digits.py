"""1797 handwritten digits of 8x8 pixels from scikit-learn, and the stand-in for text."""

import re
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..extras import missing
from .captioned import CaptionedDataset, check_split
from .randomness import uniforms

SIZE = 8
CLASSES = 10
NULL_CLASS = 10  # the row of the class tokens that means "no class", for classifier-free guidance
TOKENS_PER_CLASS = 4
TOKEN_CHANNELS = 32

_LEVELS = 16  # a pixel counts the dark dots in a 4x4 square: 0 ... 16
_SPLIT_SEED = 0
_HELD_OUT = 360
_SHIFT_PROBABILITY = 0.3
_AUGMENTATIONS = 64  # of each training image


@cache
def load_split(split: str) -> tuple[Tensor, Tensor]:
    """Return ``(images, labels)``: float32 ``[n, 1, 8, 8]`` in [-1, 1] and int64 ``[n]``.

    ``split`` is ``"train"`` (1437 images) or ``"held_out"`` (360 images, every class in its share). The
    split is fixed: neither the diffusion models nor the classifier ever train on the held-out images.
    """
    check_split(split)
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise missing("digits", error, "demo") from error
    digits = load_digits()
    train, held_out = train_test_split(
        range(len(digits.target)), test_size=_HELD_OUT, random_state=_SPLIT_SEED, stratify=digits.target
    )
    rows = train if split == "train" else held_out
    images = torch.from_numpy(digits.images[rows]).float().unsqueeze(1) / (_LEVELS / 2) - 1
    return images, torch.from_numpy(digits.target[rows]).long()


def shift_and_jitter(images: Tensor, chance: Tensor, jitter: Tensor) -> Tensor:
    """Shift some images by one pixel to the left or right and blur the 17 grey levels into a continuum.

    ``images`` is float32 ``[n, 1, 8, 8]``; a new tensor of that shape is returned. ``chance`` ``[n]`` and
    ``jitter``, shaped as the images, are uniform in [0, 1). Digits are centred in columns 1 to 6 and fill all
    rows, so only horizontal shifts leave them whole.
    """
    chance = chance.view(-1, 1, 1, 1)
    padded = torch.nn.functional.pad(images, (1, 1), value=-1.0)
    left, right = padded[..., 2:], padded[..., :-2]
    images = torch.where(chance < _SHIFT_PROBABILITY / 2, left, images)
    images = torch.where(chance > 1 - _SHIFT_PROBABILITY / 2, right, images)
    return (images + (jitter - 0.5) / (_LEVELS / 2)).clamp(-1, 1)


def make_class_tokens(seed: int) -> Tensor:
    """Return float32 ``[11, 4, 32]``: four frozen random tokens for each class and for the null class.

    They take the place of a text encoder's output. A trained model only works with the tokens that it was
    trained on: those of seed 0 for the models that ship.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(CLASSES + 1, TOKENS_PER_CLASS, TOKEN_CHANNELS, generator=generator)


class Digits(CaptionedDataset):
    """The digits with their class as four text tokens.

    Item i of the training split is image ``i % 1437`` in its augmentation number ``i // 1437``, of 64.
    """

    name = "digits"
    channels = 1
    size = SIZE
    patch_size = 1
    text_tokens = TOKENS_PER_CLASS
    text_width = TOKEN_CHANNELS
    attribute_names = ("digit",)
    attribute_sizes = (CLASSES,)

    def __init__(self, split: str, resolution: int | None = None) -> None:
        if resolution not in (None, SIZE):
            raise ValueError(f"resolution must be {SIZE} for digits, got {resolution}")
        self.split = split
        self._images, self._labels = load_split(split)
        self._class_tokens = make_class_tokens(seed=0)
        self.null_tokens = self._class_tokens[NULL_CLASS]

    def __len__(self) -> int:
        return len(self._labels) * (_AUGMENTATIONS if self.split == "train" else 1)

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        items = self._items(indices)
        rows = items % len(self._labels)
        images, labels = self._images[rows], self._labels[rows]
        if self.split == "train":
            chance, jitter = uniforms(0, items, 1 + SIZE * SIZE).float().split([1, SIZE * SIZE], dim=1)
            images = shift_and_jitter(images, chance, jitter.view_as(images))
        return {
            "pixel_values": images,
            "tokens": self.embed(labels[:, None]),
            "attributes": labels[:, None],
        }

    def captions(self, indices: Sequence[int] | Tensor) -> list[str]:
        return [str(label) for label in self._labels[self._items(indices) % len(self._labels)].tolist()]

    def encode(self, captions: Sequence[str]) -> Tensor:
        return self.embed(torch.tensor([[_digit(caption)] for caption in captions]))

    def embed(self, attributes: Tensor) -> Tensor:
        """Return the text of int64 ``attributes`` ``[n, 1]``: float32 ``[n, 4, 32]``."""
        return self._class_tokens[attributes[:, 0]]


def _digit(caption: str) -> int:
    found = re.findall(r"\d+", caption)
    if len(found) != 1 or len(found[0]) != 1:
        raise ValueError(f"prompt={caption!r} must name one digit from 0 to 9")
    return int(found[0])
