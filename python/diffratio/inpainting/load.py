"""What inpaints, from a folder: a pipeline, or a model on pixels; with the adapter that lies beside it."""

from pathlib import Path

from diffusers import AutoModel, ModelMixin
from torch import nn

from ..routing.adapter import CONFIG_NAME, load_diffratio
from .lazy import LazyPixArt


def load_transformer(folder: str | Path) -> nn.Module:
    """The transformer that `save_pretrained` wrote to a folder, LazyPixArt or of diffusers; routed where an
    adapter lies beside it.

    Raises:
        ValueError: there is none.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} holds no model (config.json is missing)")
    lazy = ModelMixin.load_config(folder)["_class_name"] == LazyPixArt.__name__
    model = (LazyPixArt if lazy else AutoModel).from_pretrained(
        folder, local_files_only=True, low_cpu_mem_usage=False, use_safetensors=True
    )
    if (folder / CONFIG_NAME).is_file():
        load_diffratio(model, folder)
    return model.eval()
