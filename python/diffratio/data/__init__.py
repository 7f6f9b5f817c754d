"""Images with captions: digits, drawn shapes, a folder, or a data set of the `datasets` package."""

from .captioned import CaptionedDataset
from .load import load_dataset

__all__ = ["CaptionedDataset", "load_dataset"]
