"""What is evaluated, sampled or drawn: a run, one of its checkpoints, an adapter, or a plain model."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn

from ..baselines import apply_baseline
from ..data import BUILT_IN
from ..data.images import CaptionedImages
from ..diffusion import noise_schedule
from ..diffusion.pipelines import Family, family_of, read_index
from ..diffusion.pipelines.pixart import PixArt
from ..diffusion.schedules import SCHEDULE_FILE, read_schedule
from ..inpainting.load import load_transformer
from ..inpainting.systems import System, system_of
from ..names import located, on_disk
from ..routing.adapter import CONFIG_NAME, load_diffratio
from ..routing.adapter_file import check_files
from ..routing.find import routed_layers
from ..toy import PRETRAINED
from ..train.run_log import RUN
from .pipeline import PipelineModel

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass
class Target:
    """A model ready for inference, and what it was trained on: a data set (None where nothing tells) with the
    ``options`` to load it, and a noise schedule (None of a flow, and where ``why_no_schedule`` tells why).
    ``pipeline`` is what samples, where the model came in one. ``run`` is what ``run.json`` tells of a run.
    """

    model: nn.Module
    name: str
    dataset: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    schedule: DDPMScheduler | None = None
    why_no_schedule: str | None = None
    pipeline: PipelineModel | None = None
    run: dict[str, Any] | None = None
    baseline: str | None = None
    """What `apply_baseline` put on the model."""

    @property
    def patched(self) -> bool:
        """Whether the model has routers or a training-free baseline, which can be switched off."""
        return "_diffratio_model" in vars(self.model)

    @property
    def is_flow(self) -> bool:
        """Whether the model is one of a flow."""
        return self.pipeline is not None and self.pipeline.family.flow

    @property
    def routed(self) -> bool:
        """Whether the model has routers."""
        return self.patched and self.model._diffratio_model.baseline is None

    @property
    def repaints(self) -> bool:
        """Whether it is a run with the task inpaint."""
        return self.run is not None and self.run["arguments"].get("task") == "inpaint"

    @property
    def system(self) -> System:
        """What repaints."""
        return system_of(self.run["arguments"]["system"])

    @property
    def channels(self) -> int:
        """C of what the model makes: one that repaints may be shown more."""
        return self.system.channels(self.model) if self.repaints else self.model.config.in_channels

    @property
    def in_latents(self) -> bool:
        """Whether its images come out of a VAE."""
        if self.repaints:
            return self.run["latents"]
        return self.pipeline is not None and not self.pipeline.family.on_pixels

    @property
    def text_tokens(self) -> int:
        """M of what a model that repaints in latents reads."""
        given = (self.run or {}).get("arguments", {}).get("max_sequence_length")
        return given or PixArt.text_tokens

    @property
    def kept_tenths(self) -> list[list[int]] | None:
        """Kept tenths [L][R], None for a model without routers."""
        return [list(layer.kept) for layer in routed_layers(self.model)] if self.routed else None

    @property
    def mean_kept(self) -> float | None:
        """Mean kept ratio over layers and timestep regions, 1 for a dense model, None for one with a baseline
        without routers."""
        if self.patched and not self.routed:
            return None
        cells = [tenths for row in self.kept_tenths or [[10]] for tenths in row]
        return sum(cells) / len(cells) / 10

    @property
    def untrained_routers(self) -> list[int]:
        """Layers whose router nothing has trained."""
        return [layer.number for layer in routed_layers(self.model) if layer.untrained]

    def load_base(self) -> nn.Module:
        """Return the model that the run began with, ready as ``model`` is."""
        from ..train.model import load_start

        return _ready(load_start(self.run), self.model.device, self.model.dtype)


def load_target(
    path: str | Path,
    *,
    checkpoint: int | None = None,
    base: str | Path | None = None,
    dataset: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    baseline: str | None = None,
) -> Target:
    """Load what ``path`` names, in evaluation mode.

    Args:
        path: a run directory, its ``final`` or ``checkpoint-N``; a folder with a diffusers transformer or
            pipeline, with or without an adapter beside it; an adapter; or "digits" or "shapes", the models of
            the package.
        checkpoint: of a run; None is the finished model.
        base: the model that an adapter is for, where it is not in the same folder: a folder or a name.
        dataset: overrides the run's own.
        baseline: what is put on the model, as `apply_baseline` takes it.

    Raises:
        ValueError: ``path`` holds nothing of the kind, or a damaged file, or ``base`` is not for it; the text
            names the argument.
    """
    run, step = _run_of(Path(path), checkpoint)
    if run is not None:
        if base is not None:
            raise ValueError(f"base={str(base)!r}: {str(path)!r} is of a run, which knows its own base")
        from ..train.encoded import Encoders
        from ..train.model import load_run

        model, info = load_run(run, step)
        name = run.name if step is None else f"{run.name}, step {step}"
        target = Target(model, name, _located(dataset) or info["dataset"], run=info)
        if target.dataset == info["dataset"]:
            options = ("resolution", "caption_column", "image_column", "keep_rows")
            target.options = {name: info["arguments"].get(name) for name in options}
        if "resolution" in info and (target.options or target.dataset not in BUILT_IN):
            target.options["resolution"] = info["resolution"]
        began, given = info["base_model"], info["arguments"]
        # What works on pixels needs no pipeline, and what repaints has one of its own.
        drawn = (info.get("flow") or info.get("latents")) and not target.repaints
        family = _family_of(began, model, given["revision"]) if drawn else None
        if family is not None:
            length = given["max_sequence_length"] or (None if family.flow else Encoders.text_tokens)
            told, revision = given["guidance_scale"], given["revision"]
            target.pipeline = PipelineModel(began, family, model, length, told, revision)
        elif info.get("flow"):
            raise ValueError(f"path: the pipeline {began!r} that the run began with is not there")
        if not target.is_flow:
            written = run / "final" if step is None else run / f"checkpoint-{step}" / "adapter"
            _find_schedule(target, [written, Path(began)], began in PRETRAINED)
    elif checkpoint is not None:
        raise ValueError(f"checkpoint={checkpoint}: {str(path)!r} is no run ({RUN} is missing)")
    else:
        target = _load_folder(str(path), base, _located(dataset))
    if target.pipeline is not None and target.options.get("resolution") is None:
        if target.dataset not in (None, *BUILT_IN):
            target.options["resolution"] = target.pipeline.family.default_side
    elif target.options.get("resolution") is None and target.dataset not in (None, *BUILT_IN):
        config = target.model.config
        if target.channels == CaptionedImages.channels:  # it works on pixels, not on latents
            target.options["resolution"] = config.sample_size
    target.model = _ready(target.model, device, dtype)
    if target.pipeline is not None:
        target.pipeline.model, target.pipeline.schedule = target.model, target.schedule
    if baseline is not None:
        apply_baseline(target.model, baseline)
        target.baseline = baseline
    return target


def _ready(model: nn.Module, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """The model for inference; diffusers warns of every cast, also of one to what a model has."""
    model = model.eval().requires_grad_(False).to(device)
    return model if model.dtype == dtype else model.to(dtype)


def _located(dataset: str | None) -> str | None:
    return dataset if dataset is None or dataset in BUILT_IN else located(dataset)


def _run_of(path: Path, checkpoint: int | None) -> tuple[Path | None, int | None]:
    """The run that a path lies in, and the step that it asks for."""
    if path.name == "adapter":
        path = path.parent
    if (path / RUN).is_file():
        return path, checkpoint
    step = re.fullmatch(r"checkpoint-(\d+)", path.name)
    inside = path.name == "final" or step is not None
    if checkpoint is None and inside and (path.parent / RUN).is_file():
        return path.parent, int(step[1]) if step else None
    return None, None


def _load_folder(path: str, base: str | Path | None, dataset: str | None) -> Target:
    folder = _transformer_folder(PRETRAINED.get(path, path))
    adapted = (folder / CONFIG_NAME).is_file()
    if not adapted and not (folder / "config.json").is_file():
        raise ValueError(
            f"path: {path!r} holds no run, model or adapter, and is not one of {list(PRETRAINED)}"
        )
    if base is not None and not adapted:
        raise ValueError(f"base={str(base)!r}: {path!r} is a model, not an adapter that needs one")
    weights = folder if base is None else _transformer_folder(PRETRAINED.get(str(base), base))
    if not (weights / "config.json").is_file():
        raise ValueError(
            f"base: {str(weights)!r} holds no model; an adapter needs the one it was trained for"
        )
    check_files(weights)
    model = load_transformer(weights)
    if adapted:
        load_diffratio(model, folder)
    known = next((name for name in (path, str(base)) if name in PRETRAINED), None)
    target = Target(model, Path(path).name if known != path else path, dataset or known)
    pipeline = str(path if base is None else base)
    family = _family_of(pipeline, model) if on_disk(pipeline) else None
    if family is not None:
        target.pipeline = PipelineModel(pipeline, family, model)
    if not target.is_flow:
        _find_schedule(target, [folder, weights], weights.resolve().is_relative_to(_PACKAGE))
    return target


def _family_of(name: str, model: nn.Module, revision: str | None = None) -> Family | None:
    try:
        return family_of(read_index(name, revision), model)
    except ValueError as error:
        raise ValueError(f"path: {name!r}: {error}") from None


def _transformer_folder(path: str | Path) -> Path:
    """Of a pipeline the folder of its transformer, else the path itself."""
    inside = Path(path) / "transformer"
    return inside if (inside / "config.json").is_file() else Path(path)


def _find_schedule(target: Target, folders: list[Path], packaged: bool) -> None:
    """Set the schedule of ``target``: of the first of ``folders`` that has one (a pipeline has it beside its
    transformer), or else, where it is ``packaged``, the one of all of the package's models."""
    looked = list(dict.fromkeys(one.parent if one.name == "transformer" else one for one in folders))
    try:
        target.schedule = read_schedule(looked)
        if target.schedule is None and packaged:
            target.schedule = noise_schedule()
        if target.schedule is None:
            where = " or ".join(map(str, looked))
            raise ValueError(
                f"the noise that {target.name!r} was trained with is not known: no {SCHEDULE_FILE} in {where}"
            )
    except ValueError as error:
        target.why_no_schedule = str(error)
