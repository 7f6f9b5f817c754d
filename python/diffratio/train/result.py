"""The model that a run leaves behind, written and loaded."""

import json
import os
from dataclasses import replace
from pathlib import Path

from diffusers import AutoModel
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from ..routing.adapter import CONFIG_NAME, load_diffratio, save_diffratio
from ..routing.adapter_file import check_files
from ..routing.find import transformer_of
from .arguments import TrainArguments
from .base import load_base
from .checkpoints import Checkpoints
from .optimizer import group_of
from .run_log import RUN

ADAPTER = "adapter"
"""The model's folder in a checkpoint."""
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_model(model: nn.Module, folder: Path) -> None:
    """Write LoRA in PEFT's layout or plain weights in diffusers', and routers and ratios beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = transformer_of(model)
    if plain is not model:
        model.save_pretrained(str(folder), safe_serialization=True)
    else:
        plain.save_config(folder)
        state = plain.state_dict().items()
        weights = {name: tensor.contiguous() for name, tensor in state if group_of(name) == "weights"}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    if "_diffratio_model" in vars(plain):
        save_diffratio(plain, folder)


def load_run(directory: str | os.PathLike, checkpoint: int | None = None) -> tuple[nn.Module, dict]:
    """Load the model of a run, ready for inference, and what `run.json` tells about it.

    Args:
        directory: what was `output_dir` of the training.
        checkpoint: a step with a checkpoint; None is the finished model.

    Returns:
        The transformer in fp32 on the CPU, LoRA merged and diffratio loaded (a run with method dense has
        none), and the content of `run.json` with the entry "checkpoint".

    Raises:
        ValueError: `directory` holds no run, or not that checkpoint, or a damaged file.
    """
    directory = Path(directory)
    try:
        info = json.loads((directory / RUN).read_text())
        TrainArguments(**info["arguments"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"directory: {str(directory)!r} holds no run ({error})") from None
    folder = directory / "final"
    if checkpoint is not None:
        folder = Checkpoints(directory).path(checkpoint) / ADAPTER
    if not folder.is_dir():
        what = "unfinished" if checkpoint is None else f"without checkpoint {checkpoint}"
        raise ValueError(f"directory: the run in {str(directory)!r} is {what}")
    check_files(folder)
    if (folder / WEIGHTS).is_file():
        model = AutoModel.from_pretrained(str(folder), use_safetensors=True)
    else:
        model = PeftModel.from_pretrained(load_start(info), str(folder)).merge_and_unload()
    if (folder / CONFIG_NAME).is_file():
        load_diffratio(model, folder)
    model.requires_grad_(False).eval()
    return model, info | {"checkpoint": checkpoint}


def load_start(info: dict) -> nn.Module:
    """Load the model that a run started from; `info` is the content of its `run.json`."""
    arguments = TrainArguments(**info["arguments"])
    return load_base(replace(arguments, pretrained_model_name_or_path=info["base_model"])).model
