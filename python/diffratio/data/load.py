"""`load_dataset`: one call for every kind of data."""

import os
from pathlib import Path

from .captioned import CaptionedDataset, check_split
from .digits import Digits
from .images import IMAGE_COLUMN, CaptionedImages, Encoder, from_datasets, from_folder
from .shapes import Shapes
from .twins import Twins

BUILT_IN = {"digits": Digits, "shapes": Shapes, "twins": Twins}
_SAVED_BY_DATASETS = ("dataset_info.json", "dataset_dict.json")


def load_dataset(
    name_or_path: str | os.PathLike,
    *,
    split: str = "train",
    resolution: int | None = None,
    caption_column: str | None = None,
    image_column: str | None = None,
    keep_rows: str | None = None,
    text_encoder: Encoder | None = None,
) -> CaptionedDataset:
    """Return a data set of images with captions.

    Args:
        name_or_path: "digits", "shapes", "twins" (shapes for inpainting), a folder of images, or what the
            `datasets` package knows by that name or has saved in that folder.
        split: "train" or "held_out"; nothing trains on the second.
        resolution: side of the images in pixels; None is 8 for digits, 32 for shapes, else 512.
        caption_column: of ``metadata.jsonl`` or of the `datasets` package; None is "text" or "caption".
        image_column: of the `datasets` package; None is "image".
        keep_rows: conditions on columns of the `datasets` package, "aesthetic >= 5.5, language = en"; a
            warning says how many rows they leave.
        text_encoder: turns a list of n captions into float32 ``[n, M, E]``; None is a frozen random embedding
            of every word. The built-in data sets bring their own text.

    Raises:
        ValueError: an argument that the data set does not have, or files that are not as they should be.
        ModuleNotFoundError: the `datasets` package is needed and missing.
    """
    check_split(split)
    path = Path(name_or_path)
    built_in = name_or_path in BUILT_IN
    folder = path.is_dir() and not any((path / name).is_file() for name in _SAVED_BY_DATASETS)
    if (built_in or folder) and image_column not in (None, IMAGE_COLUMN):
        raise ValueError(f"image_column is not for {str(name_or_path)!r}, which has no columns of images")
    if (built_in or folder) and keep_rows is not None:
        raise ValueError(f"keep_rows is not for {str(name_or_path)!r}, which is not read by `datasets`")
    if built_in:
        for name, value in (("caption_column", caption_column), ("text_encoder", text_encoder)):
            if value is not None:
                raise ValueError(f"{name} is not for {name_or_path!r}, which brings its own text")
        return BUILT_IN[name_or_path](split, resolution)
    if folder:
        found = from_folder(path, split, caption_column)
    else:
        found = from_datasets(str(name_or_path), split, caption_column, image_column, keep_rows)
    return CaptionedImages(found, resolution, text_encoder)
