"""The model of a run: a diffusers transformer with its noise schedule, LoRA, routers and ratios; what the run
leaves behind, and how that is loaded."""

import json
import os
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import diffusers
import torch
from diffusers import AutoModel, DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from ..config import DiffRatioConfig
from ..diffusion import DIFFUSION_SCHEDULERS, noise_schedule
from ..diffusion.pipelines import FAMILIES, Family, family_of, read_index
from ..diffusion.variance import predicts_variance
from ..files import replacing
from ..inpainting.load import is_lazy, load_transformer
from ..inpainting.systems import system_of
from ..names import is_hub_id, on_disk
from ..routing.adapter import CONFIG_NAME, load_diffratio, save_diffratio
from ..routing.adapter_file import check_files
from ..routing.apply import route_blocks
from ..routing.find import routed_layers, transformer_of
from ..routing.ratios import frozen_config, learn_ratios
from ..toy import PRETRAINED
from .arguments import ArgumentError, TrainArguments
from .checkpoints import Checkpoints
from .inpainting import InpaintObjective, begin_system
from .objective import FlowObjective, Objective
from .optimizer import group_of
from .run_log import RUN

ADAPTER = "adapter"
"""The model's folder in a checkpoint."""
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass
class Base:
    """`model` in fp32, the noise that it was trained on and the loss that follows from both; `family` knows
    the pipeline of a flow model."""

    model: nn.Module
    scheduler: SchedulerMixin
    objective: Objective | FlowObjective
    family: Family | None = None


def load_base(arguments: TrainArguments) -> Base:
    """Load the transformer and the schedule that `pretrained_model_name_or_path` names.

    Raises:
        ArgumentError: there is no transformer, or it was trained neither for a diffusion with betas nor for a
            flow whose pipeline is known.
    """
    name = arguments.pretrained_model_name_or_path
    if name in PRETRAINED:
        model, scheduler = _load_transformer(PRETRAINED[name], None, None), noise_schedule()
        model.register_to_config(_name_or_path=name)  # not the folder that the package is installed in
    else:
        model = _load_transformer(name, arguments.revision, arguments.variant)
        try:
            index = read_index(name, arguments.revision)
            family = family_of(index, model)
        except ValueError as error:
            raise ArgumentError(f"pretrained_model_name_or_path={name!r}: {error}") from None
        if family is not None and family.flow:
            if arguments.task == "inpaint":
                raise ArgumentError(f"task='inpaint' is for PixArt, {name!r} is a {index['_class_name']}")
            kind = getattr(diffusers, index["scheduler"][1])
            hub = {"revision": arguments.revision, "local_files_only": on_disk(name)}
            scheduler = kind.from_pretrained(name, subfolder="scheduler", **hub)
            return Base(model, scheduler, FlowObjective(family, scheduler, arguments), family)
        scheduler = _load_scheduler(name, arguments.revision)
    for option in ("weighting_scheme", "logit_mean", "logit_std", "guidance_scale"):
        if getattr(arguments, option) != getattr(TrainArguments, option):
            raise ArgumentError(f"{option}={getattr(arguments, option)!r} is for flow models alone")
    if arguments.task == "inpaint":
        system, model = system_of(arguments.system), begin_system(model, arguments)
        kind, channels = partial(InpaintObjective, system=system), system.channels(model)
    else:
        kind, channels = Objective, model.config.in_channels
    learns_variance = arguments.learn_variance and predicts_variance(model, channels)
    if learns_variance:
        scheduler = DDPMScheduler.from_config(scheduler.config, variance_type="learned_range")
    options = {"snr_gamma": arguments.snr_gamma, "learn_variance": learns_variance}
    return Base(model, scheduler, kind(model, scheduler, **options))


def check_variance(base: Base, arguments: TrainArguments) -> None:
    """Warn where a variance that the model predicts is not trained, or a recipe's cannot be.

    Raises:
        ArgumentError: `learn_variance` was asked for, and the model predicts none.
    """
    predicts = base.family is None and predicts_variance(base.model, base.objective.channels)
    if predicts and not arguments.learn_variance:
        warnings.warn(
            "the model predicts a variance, too, which is not trained and will no longer fit: "
            "--learn_variance trains it, for --sampler ddpm",
            stacklevel=2,
        )
    if arguments.learn_variance and not predicts:
        why = "the model predicts no variance"
        if arguments.recipe is None:
            raise ArgumentError(f"learn_variance=True: {why}")
        warnings.warn(f"recipe={arguments.recipe!r}: {why}, so none is learned", stacklevel=2)


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
            "noise is not that of a diffusion with betas; flow models are trained in the pipelines "
            f"{', '.join(FAMILIES)}"
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
            if on_disk(name) and is_lazy(Path(name, subfolder or "")):
                return load_transformer(Path(name, subfolder or ""))
            return AutoModel.from_pretrained(name, subfolder=subfolder, use_safetensors=True, **hub)
        except (OSError, ValueError) as error:
            failures.append(str(error).splitlines()[0])
    raise ArgumentError(
        f"pretrained_model_name_or_path={name!r} holds no transformer: {failures[0]}; "
        f"outside of transformer/: {failures[1]}"
    )


def prepare_model(base: Base, arguments: TrainArguments) -> nn.Module:
    """Freeze, add LoRA, routers and ratios as the arguments say.

    Returns:
        The module to train: `base.model`, or PEFT's wrapper of it.

    Raises:
        ArgumentError: the model cannot be routed, or nothing is left to train.
    """
    model = base.model
    if arguments.train_mode == "lora":
        if arguments.mixed_precision == "bf16":
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        rank, targets = arguments.rank, (base.family or Family).lora_targets
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)))
        cast_training_params(model, torch.float32)
    add_routing(model, arguments)
    if arguments.gradient_checkpointing:
        transformer_of(model).enable_gradient_checkpointing()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError("train_mode: nothing is left to train")
    return model


def add_routing(model: nn.Module, arguments: TrainArguments) -> None:
    """Add routers for every method but dense, and ratios for l, lt and a mod whose compression grows.

    Raises:
        ArgumentError: the model has no block that can be routed.
    """
    if arguments.method == "dense":
        return
    compression = arguments.target_compression if arguments.method == "mod" else 0.0
    config = DiffRatioConfig(
        compression,
        num_regions=arguments.regions,
        rescale=arguments.rescale,
        router_start=arguments.router_start,
        rounding=arguments.rounding,
    )
    try:
        route_blocks(model, config)
    except ValueError as error:
        raise ArgumentError(f"pretrained_model_name_or_path: {error}") from None
    if arguments.dense_regions:
        layers = len(routed_layers(transformer_of(model)))
        route_blocks(model, frozen_config(config, [arguments.tenths_by_region] * layers))
    if arguments.learns_ratios:
        learn_ratios(model, mode=arguments.ratio_mode, bins=arguments.bins)
    elif arguments.ramp:
        learn_ratios(model, bins=tuple(range(11))).requires_grad_(False)


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
        with replacing(folder / WEIGHTS) as beside:
            save_file(weights, beside, metadata={"format": "pt"})
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
        model = load_transformer(folder)
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
