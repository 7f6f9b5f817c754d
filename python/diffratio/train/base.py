"""What a run starts from: a diffusers transformer with its noise schedule, LoRA, routers and ratios."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoModel, DDPMScheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model
from torch import nn

from ..config import DiffRatioConfig
from ..diffusion import DIFFUSION_SCHEDULERS, noise_schedule
from ..names import is_hub_id, on_disk
from ..routing.apply import route_blocks
from ..routing.find import transformer_of
from ..routing.ratios import learn_ratios
from ..toy import PRETRAINED
from .arguments import ArgumentError, TrainArguments
from .objective import Objective

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


@dataclass
class Base:
    """`model` in fp32, the noise that it was trained on and the loss that follows from both."""

    model: nn.Module
    scheduler: DDPMScheduler
    objective: Objective


def load_base(arguments: TrainArguments) -> Base:
    """Load the transformer and the schedule that `pretrained_model_name_or_path` names.

    Raises:
        ArgumentError: there is no transformer, or it was not trained for a diffusion with betas.
    """
    name = arguments.pretrained_model_name_or_path
    if name in PRETRAINED:
        model, scheduler = _load_transformer(PRETRAINED[name], None, None), noise_schedule()
        model.register_to_config(_name_or_path=name)  # not the folder that the package is installed in
    else:
        model = _load_transformer(name, arguments.revision, arguments.variant)
        scheduler = _load_scheduler(name, arguments.revision)
    return Base(model, scheduler, Objective(model, scheduler, arguments.snr_gamma))


def _load_scheduler(name: str, revision: str | None) -> DDPMScheduler:
    try:
        hub = {"revision": revision, "local_files_only": on_disk(name)}
        config = DDPMScheduler.load_config(name, subfolder="scheduler", **hub)
    except OSError:
        warnings.warn(
            f"{name} has no scheduler: training predicts the noise on a linear schedule of 1000 steps",
            stacklevel=2,
        )
        return DDPMScheduler()
    if config.get("_class_name") not in DIFFUSION_SCHEDULERS:
        raise ArgumentError(
            f"pretrained_model_name_or_path={name!r} was trained for {config.get('_class_name')}, whose "
            "noise is not that of a diffusion with betas"
        )
    return DDPMScheduler.from_config(config)


def _load_transformer(name: str | Path, revision: str | None, variant: str | None) -> nn.Module:
    name = str(name)
    if not on_disk(name) and not is_hub_id(name):
        raise ArgumentError(f"pretrained_model_name_or_path={name!r} is no folder")
    hub = {"revision": revision, "variant": variant, "local_files_only": on_disk(name)}
    failures = []
    for subfolder in ("transformer", None):
        try:
            return AutoModel.from_pretrained(name, subfolder=subfolder, use_safetensors=True, **hub)
        except (OSError, ValueError) as error:
            failures.append(str(error).splitlines()[0])
    raise ArgumentError(
        f"pretrained_model_name_or_path={name!r} holds no transformer: {failures[0]}; "
        f"outside of transformer/: {failures[1]}"
    )


def prepare_model(model: nn.Module, arguments: TrainArguments) -> nn.Module:
    """Freeze, add LoRA, routers and ratios as the arguments say.

    Returns:
        The module to train: `model`, or PEFT's wrapper of it.

    Raises:
        ArgumentError: the model cannot be routed, or nothing is left to train.
    """
    if arguments.train_mode == "lora":
        if arguments.mixed_precision == "bf16":
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        rank = arguments.rank
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)))
        cast_training_params(model, torch.float32)
    add_routing(model, arguments)
    if arguments.gradient_checkpointing:
        transformer_of(model).enable_gradient_checkpointing()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError("train_mode: nothing is left to train")
    return model


def add_routing(model: nn.Module, arguments: TrainArguments) -> None:
    """Add routers for every method but dense, and ratios for l and lt.

    Raises:
        ArgumentError: the model has no block that can be routed.
    """
    if arguments.method == "dense":
        return
    compression = arguments.target_compression if arguments.method == "mod" else 0.0
    config = DiffRatioConfig(compression, num_regions=arguments.regions, router_start=arguments.router_start)
    try:
        route_blocks(model, config)
    except ValueError as error:
        raise ArgumentError(f"pretrained_model_name_or_path: {error}") from None
    if arguments.learns_ratios:
        learn_ratios(model, mode=arguments.ratio_mode)
