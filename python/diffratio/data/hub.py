"""Data sets of Hugging Face's `datasets` package: by name, or saved to disk."""

from pathlib import Path

from ..names import is_hub_id
from .captioned import SPLIT_FOLDERS
from .images import IMAGE_COLUMN, Found, caption_of, held_out_rows


def from_datasets(
    name_or_path: str, split: str, caption_column: str | None = None, image_column: str | None = None
) -> Found:
    """Find a data set with an image column and a text column; where it has no split of its own for
    ``held_out``, every tenth image of ``train`` is held out."""
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
    used = list(range(len(rows))) if has_own else held_out_rows(len(rows), split)
    words = rows.remove_columns(image_column)
    captions = [caption_of(words[row], caption_column, f"row {row} of {name_or_path}") for row in used]
    return Found(lambda item: rows[used[item]][image_column], captions)
