"""Models of all families at real sizes, and what they are called with."""

from .inputs import INPUTS, Draw, Size, model_inputs
from .presets import PRESETS, Preset

__all__ = ["INPUTS", "PRESETS", "Draw", "Preset", "Size", "model_inputs"]
