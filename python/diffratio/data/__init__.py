"""Images with captions: digits, drawn shapes, a folder, or a data set of the `datasets` package."""

from .captioned import CaptionedDataset
from .load import BUILT_IN, load_dataset

__all__ = ["BUILT_IN", "CaptionedDataset", "load_dataset"]
