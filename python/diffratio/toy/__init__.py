"""Small diffusion transformers that one CPU thread can train: diffusers' PixArt with PixArt's own start."""

from .small_pixart import DIGITS_LT30, PRETRAINED, load_pixart, small_pixart

__all__ = ["DIGITS_LT30", "PRETRAINED", "load_pixart", "small_pixart"]
