"""Samples in a folder: a stopped evaluation goes on where it was, and what is judged can be looked at."""

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..files import replace_text, replacing

SETTINGS = "settings.json"


class SampleFolder:
    """PNGs of samples, by number. What is judged is what they hold: 8 bits.

    Args:
        folder: made where it is missing.
        made_by: all that the samples depend on; plain values.

    Raises:
        ValueError: the folder holds samples of other settings; the message names ``keep_samples``.
    """

    def __init__(self, folder: Path, made_by: dict[str, Any]) -> None:
        self.folder, settings = folder, folder / SETTINGS
        made_by = json.loads(json.dumps(made_by))  # as it is read
        folder.mkdir(parents=True, exist_ok=True)
        if settings.is_file():
            before = json.loads(settings.read_text())
            other = [name for name in {**before, **made_by} if before.get(name) != made_by.get(name)]
            if other:
                raise ValueError(
                    f"keep_samples: {folder} holds samples with another {', '.join(other)}; "
                    "give another folder, or delete it"
                )
        elif any(folder.iterdir()):
            raise ValueError(f"keep_samples: {folder} holds other files; give another folder")
        replace_text(settings, json.dumps(made_by) + "\n")

    def read(self, count: int, at_once: int) -> Iterator[Tensor]:
        """Yield the first samples, at most ``count``, in parts ``[at_once, C, H, W]`` that are all there."""
        for start in range(0, count, at_once):
            paths = [self._path(row) for row in range(start, min(start + at_once, count))]
            if not all(path.is_file() for path in paths):
                return
            yield torch.stack([_read(path) for path in paths])

    def write(self, first: int, images: Tensor) -> Tensor:
        """Write ``images`` ``[n, C, H, W]`` in [-1, 1], numbered from ``first``; return them as written."""
        levels = levels_of(images).to(torch.uint8)
        for row, one in enumerate(levels, start=first):
            pixels = one[0] if len(one) == 1 else one.permute(1, 2, 0)
            with replacing(self._path(row)) as beside:
                Image.fromarray(pixels.contiguous().numpy()).save(beside, format="PNG")
        return eight_bit(images)

    def _path(self, row: int) -> Path:
        return self.folder / f"{row:06}.png"


def eight_bit(images: Tensor) -> Tensor:
    """Images in [-1, 1] as a PNG holds them."""
    return levels_of(images) / 127.5 - 1


def levels_of(images: Tensor) -> Tensor:
    """0 to 255 of images in [-1, 1]."""
    return ((images + 1) * 127.5).round().clamp(0, 255)


def _read(path: Path) -> Tensor:
    """float32 [C, H, W] in [-1, 1]"""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1) / 127.5 - 1


def digest(model: nn.Module) -> str:
    """Return what tells the weights of a model from others: 16 hexadecimal digits."""
    found = blake2b(digest_size=8)
    for name, weight in model.state_dict().items():
        bits = torch.hash_tensor(weight.flatten(), 0).item()  # of equal numbers half cancel out
        found.update(f"{name} {tuple(weight.shape)} {bits} {weight.double().sum().item()}".encode())
    return found.hexdigest()
