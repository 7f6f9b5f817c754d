"""Pipelines: how each family's text, latents and transformer go together.

A flow pipeline without a VAE and text encoders is one of a small model on pixels, which are folded into
channels, and on the text of a data set.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from ...names import on_disk
from .family import Family

FAMILIES = {
    "FluxPipeline": ("flux", "Flux"),
    "StableDiffusion3Pipeline": ("sd3", "SD3"),
    "QwenImagePipeline": ("qwen_image", "QwenImage"),
    "ZImagePipeline": ("z_image", "ZImage"),
    "WanPipeline": ("wan", "Wan"),
}
"""Classes of flow models' pipelines -> the file and class here that know them."""
DIFFUSIONS = {
    "PixArtAlphaPipeline": ("pixart", "PixArt"),
    "PixArtSigmaPipeline": ("pixart", "PixArtSigma"),
    "DiTPipeline": ("dit", "DiT"),
}
"""The same of diffusions with betas, which are sampled and judged through their pipeline, and trained
without."""

__all__ = ["DIFFUSIONS", "FAMILIES", "Family", "family_of", "load_pipeline", "read_index"]


def read_index(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """Return the content of a pipeline's `model_index.json`; None for what is no pipeline.

    Raises:
        ValueError: a file that is there cannot be read.
    """
    here, path = on_disk(name), Path(name) / DiffusionPipeline.config_name
    if here and not path.is_file():
        return None
    try:
        return DiffusionPipeline.load_config(name, revision=revision, local_files_only=here)
    except (OSError, ValueError) as error:
        if here:
            raise ValueError(
                f"{Path(name) / DiffusionPipeline.config_name} cannot be read: {error}"
            ) from None
        return None  # a hub repository of a model alone


def family_of(index: dict[str, Any] | None, model: nn.Module) -> Family | None:
    """Return what knows the pipeline of that `model_index.json`, for its transformer; None where it is none
    of `FAMILIES` and `DIFFUSIONS`.

    Raises:
        ValueError: a pipeline of the family that cannot be trained or sampled here.
    """
    known = FAMILIES | DIFFUSIONS
    if index is None or index["_class_name"] not in known:
        return None
    file, name = known[index["_class_name"]]
    return getattr(import_module(f".{file}", __name__), name)(model.config, index)


def load_pipeline(name: str, model: nn.Module, revision: str | None = None, **options) -> DiffusionPipeline:
    """Return the pipeline in a folder or of a hub id around `model`, its transformer.

    Raises:
        OSError, ValueError, ImportError: as diffusers does, where a part is missing.
    """
    index = read_index(name, revision)
    parts = {part: value for part, value in index.items() if isinstance(value, list)}
    absent = {part: None for part, value in parts.items() if value[0] is None}
    hub = {"revision": revision, "local_files_only": on_disk(name)}
    return DiffusionPipeline.from_pretrained(name, **(absent | {"transformer": model}), **hub, **options)
