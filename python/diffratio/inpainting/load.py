"""Models that repaint, from folders: diffusers' `AutoModel` knows its own classes alone."""

from pathlib import Path

from diffusers import AutoModel
from torch import nn

from .lazy import LazyPixArt


def is_lazy(folder: str | Path) -> bool:
    """Whether the transformer in a folder is a LazyPixArt."""
    there = (Path(folder) / "config.json").is_file()
    return there and LazyPixArt.load_config(folder).get("_class_name") == LazyPixArt.__name__


def load_transformer(folder: str | Path, **options) -> nn.Module:
    """The transformer that `save_pretrained` wrote to a folder: LazyPixArt, or one of diffusers.

    Args:
        folder: with a `config.json`.
        options: of `from_pretrained`.

    Raises:
        ValueError: there is no model.

    Example:
        >>> model = load_transformer("out/lazy/final")
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} holds no model (config.json is missing)")
    own = {"local_files_only": True, "low_cpu_mem_usage": False, "use_safetensors": True}
    return (LazyPixArt if is_lazy(folder) else AutoModel).from_pretrained(str(folder), **own | options)
