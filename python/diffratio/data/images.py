"""Images with captions from a folder, or from a data set of Hugging Face's `datasets` package."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..names import is_hub_id
from .captioned import SPLIT_FOLDERS, CaptionedDataset
from .columns import kept_rows
from .text import WordEmbeddings

RESOLUTION = 512
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
IMAGE_COLUMN = "image"
CAPTION_COLUMNS = ("text", "caption")
METADATA = ("metadata.jsonl", "metadata.csv")
CAPTIONS = (
    "metadata.jsonl or metadata.csv (file_name, text), a .txt beside each image, or a folder for each class"
)
"""Where a folder of images may have its captions, in words."""
_HELD_OUT_EVERY = 10  # where the data has no split of its own
_TOKENS_PER_SIDE = 16

Encoder = Callable[[list[str]], Tensor]


class Found(NamedTuple):
    """Images with captions, before they are loaded."""

    read: Callable[[int], Image.Image]
    """Returns one of them, whenever it is asked for."""
    captions: list[str]
    classes: Sequence[str] = ()
    """Of all splits, where the captions are names of classes."""
    files: Sequence[tuple[str, int]] = ()
    """Names and sizes, which tell images from others with the same captions."""


class BrokenImage(ValueError):
    """An image that cannot be read; it is found when a sample needs it."""


class CaptionedImages(CaptionedDataset):
    """Images cut to a centred square and resized, and what ``text_encoder`` makes of their captions.

    Where they have classes the one attribute is "class".
    """

    channels = 3

    def __init__(self, found: Found, resolution: int | None, text_encoder: Encoder | None = None) -> None:
        self.size = RESOLUTION if resolution is None else resolution
        if self.size < 1 or (self.size > _TOKENS_PER_SIDE and self.size % _TOKENS_PER_SIDE):
            raise ValueError(
                f"resolution must be a multiple of {_TOKENS_PER_SIDE}, or less, got {resolution}"
            )
        self.patch_size = max(1, self.size // _TOKENS_PER_SIDE)
        self._read, self._captions, classes, files = found
        self._encode = WordEmbeddings() if text_encoder is None else text_encoder
        labels = [classes.index(caption) for caption in self._captions] if classes else None
        self._attributes = torch.zeros(len(self._captions), 0, dtype=torch.int64)
        if classes:
            self._attributes = torch.tensor(labels, dtype=torch.int64)[:, None]
            self.attribute_names, self.attribute_sizes = ("class",), (len(classes),)
            self.class_names = tuple(classes)
        known = repr((self._captions, labels, self.size, files)).encode()
        self.name = f"images-{blake2b(known, digest_size=8).hexdigest()}"
        self.null_tokens = self._encode([""])[0]
        self.text_tokens, self.text_width = self.null_tokens.shape

    def __len__(self) -> int:
        return len(self._captions)

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        items = self._items(indices)
        return {
            "pixel_values": torch.stack([_square(self._read(i), self.size) for i in items.tolist()]),
            "tokens": self._encode(self.captions(items)),
            "attributes": self._attributes[items],
        }

    def encode(self, captions: Sequence[str]) -> Tensor:
        return self._encode(list(captions))

    def captions(self, indices: Sequence[int] | Tensor) -> list[str]:
        return [self._captions[i] for i in self._items(indices).tolist()]


def _square(image: Image.Image, size: int) -> Tensor:
    """float32 [3, size, size] in [-1, 1]"""
    if image.mode.startswith("I;16"):  # 16 bits of grey, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def from_folder(folder: Path, split: str, caption_column: str | None = None) -> Found:
    """Read a folder as `imagefolder` does: captions from ``metadata.jsonl`` or ``metadata.csv`` (columns
    ``file_name`` and ``text``), or from a ``.txt`` beside each image, or, where there is none of these, the
    name of the folder below it that the image lies in as its class. Text is UTF-8, with a byte order mark or
    without. Files and folders that begin with "." or "__" are not looked at.

    A folder for each split (``train``; ``validation``, ``held_out`` or ``test``) is used where there is one;
    otherwise every tenth image is held out.
    """
    folders = [folder / name for names in SPLIT_FOLDERS.values() for name in names]
    roots = [one for one in folders if one.is_dir()]
    root = next((one for one in roots if one.name in SPLIT_FOLDERS[split]), folder)
    if roots and root == folder:
        raise ValueError(f"split={split!r} has no folder in {folder} ({' or '.join(SPLIT_FOLDERS[split])})")
    paths = _images(root)
    if not paths:
        raise ValueError(f"folder {root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    classes: Sequence[str] = ()
    metadata = next((root / name for name in METADATA if (root / name).is_file()), None)
    if metadata is not None:
        paths, captions = _read_metadata(metadata, caption_column)
    elif any(path.with_suffix(".txt").is_file() for path in paths):
        captions = [_read_text(path.with_suffix(".txt")).strip() for path in paths]
    else:
        captions = [_class_of(path, root) for path in paths]
        # A class has the same label in every split, whichever of them it is missing from.
        classes = sorted({_class_of(path, one) for one in roots or [root] for path in _images(one)})
    rows = range(len(paths)) if roots else _held_out_rows(len(paths), split)
    return Found(
        lambda item: _open(paths[rows[item]]),
        [captions[row] for row in rows],
        classes,
        [(os.path.relpath(paths[row], root), paths[row].stat().st_size) for row in rows],
    )


def from_datasets(
    name_or_path: str,
    split: str,
    caption_column: str | None = None,
    image_column: str | None = None,
    keep_rows: str | None = None,
) -> Found:
    """Find a data set with an image column and a text column; where it has no split of its own for
    ``held_out``, every tenth image of ``train`` is held out. ``keep_rows`` are conditions on other columns;
    a warning says how many rows they leave."""
    path = Path(name_or_path)
    if path.is_file() or not (path.is_dir() or is_hub_id(name_or_path)):
        what = "a file, not a folder of images" if path.is_file() else "no folder"
        raise ValueError(f"name_or_path={name_or_path!r} is {what}")
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"name_or_path={name_or_path!r} is no folder of images and not built in (digits, shapes); "
            "to look it up as a data set, install the datasets package: pip install datasets",
            name=error.name,
        ) from None
    load = datasets.load_from_disk if path.is_dir() else datasets.load_dataset
    try:
        splits = load(name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(f"name_or_path={name_or_path!r}: {error}") from None
    if not isinstance(splits, dict):
        splits = {"train": splits}
    own = next((name for name in SPLIT_FOLDERS[split] if name in splits), None)
    if (own or "train") not in splits:
        raise ValueError(f"name_or_path={name_or_path!r} has no split train, only {', '.join(splits)}")
    rows = splits[own or "train"]
    image_column = image_column or IMAGE_COLUMN
    if image_column not in rows.column_names:
        raise ValueError(f"image_column={image_column!r} must be one of {', '.join(rows.column_names)}")
    has_own = all(any(name in splits for name in names) for names in SPLIT_FOLDERS.values())
    used = list(range(len(rows))) if has_own else _held_out_rows(len(rows), split)
    words = rows.remove_columns(image_column)
    if keep_rows is not None:
        used = kept_rows(words, used, keep_rows, f"the split {split} of {name_or_path}")
    captions = [_caption_of(words[row], caption_column, f"row {row} of {name_or_path}") for row in used]
    return Found(lambda item: rows[used[item]][image_column], captions)


def _images(root: Path) -> list[Path]:
    """Of hidden files macOS leaves one beside every image on a foreign disk, with the image's own suffix."""
    paths = (path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(
        path
        for path in paths
        if not any(part.startswith((".", "__")) for part in path.relative_to(root).parts)
    )


def _class_of(path: Path, root: Path) -> str:
    if path.parent == root:
        raise ValueError(f"folder {root} has no captions: {CAPTIONS}")
    return path.parent.name


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenImage(f"image {path} cannot be read: {error}") from None


def _held_out_rows(count: int, split: str) -> list[int]:
    """Return the rows of a split of data that comes without one: every tenth is held out."""
    if count < 2:
        raise ValueError(f"a data set of {count} images cannot be split: 2 are needed")
    return [row for row in range(count) if (row % _HELD_OUT_EVERY == 0) == (split == "held_out")]


def _read_text(path: Path) -> str:
    """Windows puts a byte order mark before its text, which is no part of it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"caption file {path} cannot be read as UTF-8: {error}") from None


def _read_metadata(file: Path, caption_column: str | None) -> tuple[list[Path], list[str]]:
    paths, captions = [], []
    rows = _csv_rows(file) if file.suffix == ".csv" else _json_rows(file)
    for number, row in rows:
        where = f"{file}, line {number}"
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ValueError(f"{where}: no file_name")
        path = file.parent / row["file_name"]
        if not path.is_file():
            raise ValueError(f"{where}: no such file: {row['file_name']}")
        paths.append(path)
        captions.append(_caption_of(row, caption_column, where))
    return paths, captions


def _json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    # Not splitlines: a caption may hold U+2028 or U+0085, which end no line of JSON.
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: not JSON ({error})") from None


def _csv_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # A caption in quotes may hold line breaks, which end no row.
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""))
    try:
        for row in reader:
            # A row of more cells than columns has the rest under None.
            yield reader.line_num, {name: value for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: not CSV ({error})") from None


def _caption_of(row: dict[str, Any], caption_column: str | None, where: str) -> str:
    columns = CAPTION_COLUMNS if caption_column is None else (caption_column,)
    column = next((name for name in columns if name in row), None)
    if column is None:
        raise ValueError(f"caption_column: {where} has no {' or '.join(columns)}, only {', '.join(row)}")
    value = row[column]
    # Several captions of one image are a list; the first one is as good as any and the same in every run.
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str):
        raise ValueError(f"caption_column: {column} of {where} is not text")
    return value
