"""The demo's model: a small PixArt with 64 tokens, and how it is saved and loaded with its class tokens."""

from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.digits import Digits
from ..models import load_pixart, small_pixart

ASSETS = Path(__file__).parent / "assets"
CLASS_TOKENS_FILE = "class_tokens.safetensors"

LAYERS = 5  # two models of 0.85 M fp32 parameters stay below 8 MB


def build_model(seed: int) -> PixArtTransformer2DModel:
    """Return a fresh model, initialised from ``seed`` as PixArt does."""
    return small_pixart(Digits("train"), seed, layers=LAYERS)


def save_model(model: PixArtTransformer2DModel, class_tokens: Tensor, folder: Path) -> None:
    """Write ``model`` in diffusers' layout, with the tokens ``[11, 4, 32]`` that it was trained on."""
    model.register_to_config(_name_or_path="")  # diffusers would write the folder that it was loaded from
    model.save_pretrained(folder, safe_serialization=True)
    save_file({"class_tokens": class_tokens.contiguous()}, folder / CLASS_TOKENS_FILE)


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[PixArtTransformer2DModel, Tensor]:
    """Return ``(model, class_tokens)`` that ``save_model`` wrote to ``folder``, for inference."""
    if not (folder / CLASS_TOKENS_FILE).is_file():
        raise FileNotFoundError(
            f"folder {str(folder)!r} holds no demo model ({CLASS_TOKENS_FILE} is missing)"
        )
    class_tokens = load_file(folder / CLASS_TOKENS_FILE)["class_tokens"]
    return load_pixart(folder, device), class_tokens.to(device)
