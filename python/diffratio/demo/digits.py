"""The data: 1797 handwritten digits of 8x8 pixels from scikit-learn, and the stand-in for text."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SIZE = 8
CLASSES = 10
NULL_CLASS = 10  # the row of the class tokens that means "no class", for classifier-free guidance
TOKENS_PER_CLASS = 4
TOKEN_CHANNELS = 32

_LEVELS = 16  # a pixel counts the dark dots in a 4x4 square: 0 ... 16
_SPLIT_SEED = 0
_HELD_OUT = 360
_SHIFT_PROBABILITY = 0.3


@cache
def load_split(split: str) -> tuple[Tensor, Tensor]:
    """Return ``(images, labels)``: float32 ``[n, 1, 8, 8]`` in [-1, 1] and int64 ``[n]``.

    ``split`` is ``"train"`` (1437 images) or ``"held_out"`` (360 images, every class in its share). The
    split is fixed: neither the diffusion models nor the classifier ever train on the held-out images.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    digits = load_digits()
    train, held_out = train_test_split(
        range(len(digits.target)), test_size=_HELD_OUT, random_state=_SPLIT_SEED, stratify=digits.target
    )
    rows = train if split == "train" else held_out
    images = torch.from_numpy(digits.images[rows]).float().unsqueeze(1) / (_LEVELS / 2) - 1
    return images, torch.from_numpy(digits.target[rows]).long()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift some images by one pixel to the left or right and blur the 17 grey levels into a continuum.

    ``images`` is float32 ``[n, 1, 8, 8]``; a new tensor of that shape is returned. Digits are centred in
    columns 1 to 6 and fill all rows, so only horizontal shifts leave them whole.
    """
    n = images.shape[0]
    chance = torch.rand(n, 1, 1, 1, generator=generator)
    padded = torch.nn.functional.pad(images, (1, 1), value=-1.0)
    left, right = padded[..., 2:], padded[..., :-2]
    images = torch.where(chance < _SHIFT_PROBABILITY / 2, left, images)
    images = torch.where(chance > 1 - _SHIFT_PROBABILITY / 2, right, images)
    jitter = (torch.rand(images.shape, generator=generator) - 0.5) / (_LEVELS / 2)
    return (images + jitter).clamp(-1, 1)


def make_class_tokens(seed: int) -> Tensor:
    """Return float32 ``[11, 4, 32]``: four frozen random tokens for each class and for the null class.

    They take the place of a text encoder's output. A trained model only works with the tokens that it was
    trained on, so they are saved next to its weights and this function is for training alone.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(CLASSES + 1, TOKENS_PER_CLASS, TOKEN_CHANNELS, generator=generator)
