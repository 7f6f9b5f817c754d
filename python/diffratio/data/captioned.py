"""What every data set offers to training and evaluation."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

SPLIT_FOLDERS = {"train": ("train",), "held_out": ("held_out", "validation", "valid", "test")}
"""The splits, and what others call them: the first that is there is taken."""


class CaptionedDataset(Dataset):
    """Images with captions. An item depends on its index alone: runs repeat and resume exactly.

    Attributes:
        name: tells the data set from others, in the names of files.
        channels, size: every image is float32 ``[channels, size, size]`` in [-1, 1].
        patch_size: the side of a token, in pixels, of a small model for this data.
        text_tokens, text_width: a caption is float32 ``[text_tokens, text_width]``.
        null_tokens: ``[text_tokens, text_width]``, takes the place of a dropped caption.
        attribute_names, attribute_sizes: what a classifier can judge, and how many values each has.
        class_names: where captions are names of classes, all of them: the values of the first attribute.
    """

    name: str
    channels: int
    size: int
    patch_size: int
    text_tokens: int
    text_width: int
    null_tokens: Tensor
    attribute_names: tuple[str, ...] = ()
    attribute_sizes: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Return ``pixel_values`` [n, C, H, W], ``tokens`` [n, M, E] and ``attributes`` int64 [n, A]."""
        raise NotImplementedError

    def captions(self, indices: Sequence[int] | Tensor) -> list[str]:
        """Return the captions in words."""
        raise NotImplementedError

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return the text of captions that no image has to have, float32 ``[n, text_tokens, text_width]``.

        Raises:
            ValueError: the data set has no text for one of them; the message tells what it has.
        """
        raise NotImplementedError

    def masks(self, indices: Sequence[int] | Tensor) -> Tensor | None:
        """Return which part of each pixel the object covers, float32 ``[n, H, W]``; None where unknown."""
        return None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """What a DataLoader asks for: one vectorised call for all items of a batch."""
        batch = self.batch(indices)
        return [{name: tensor[row] for name, tensor in batch.items()} for row in range(len(indices))]

    def _items(self, indices: Sequence[int] | Tensor) -> Tensor:
        """int64 ``[n]``, counted from the front; an index outside of the data set is an error."""
        items = torch.as_tensor(indices, dtype=torch.int64)
        items = torch.where(items < 0, items + len(self), items)
        if ((items < 0) | (items >= len(self))).any():
            raise IndexError(f"indices must lie in 0..{len(self) - 1}, got {list(indices)}")
        return items


def check_split(split: str) -> None:
    """Raise a ValueError unless ``split`` is a split that every data set has."""
    if split not in SPLIT_FOLDERS:
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
