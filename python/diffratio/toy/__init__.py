"""The small diffusion transformers that ship with the package: diffusers' PixArt of a million parameters."""

from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel

_ASSETS = Path(__file__).parent / "assets"
PRETRAINED = {name: _ASSETS / name for name in ("digits", "shapes")}
"""Folders of the dense models, by data set."""
DIGITS_LT30 = _ASSETS / "digits-lt30"
"""The model of the digits, fine-tuned until it had learned how much each block keeps at which timesteps
(DiffRatio-LT, 30 % compression on average): weights, and the adapter beside them."""
TWINS_LAZY = _ASSETS / "twins-lazy"
"""A ``LazyPixArt`` that began as the model of the shapes and was trained to repaint one of two objects alike,
by learned ratios (DiffRatio-LT, 30 % compression on average): weights, adapter and log."""


def load_pixart(folder: Path | str, device: torch.device | str = "cpu") -> PixArtTransformer2DModel:
    """Return the model that diffusers' ``save_pretrained`` wrote to ``folder``, for inference."""
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"folder {str(folder)!r} holds no model (config.json is missing)")
    model = PixArtTransformer2DModel.from_pretrained(
        folder, local_files_only=True, low_cpu_mem_usage=False, use_safetensors=True
    )
    return model.eval().to(device)
