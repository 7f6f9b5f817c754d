"""`evaluate`: quality, latency, FLOPs and memory of one model, as one report."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import DiffRatioConfig, disable_diffratio, enable_diffratio, remove_diffratio
from ..baselines import parse_baseline
from ..diffusion.pipelines.pixart import PixArtSigma
from ..routing.apply import route_blocks
from ..routing.find import routed_model
from .cost import model_cost
from .flops.shapes import PAPER_TEXT_TOKENS
from .inpainting import RepaintingStep, judge_of
from .layers import MEASURED_BY
from .networks import Critics, Networks
from .published import Published, of_dense, published
from .quality import Judge, SampleSettings
from .router_maps import TIMESTEPS, router_auc
from .samples import SampleFolder, digest
from .target import Target

PUBLISHED_MODEL = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72}
"""Sizes of the transformer of the paper's Tables 1 (512 pixels a side) and 4 (1024)."""


def evaluate(
    target: Target,
    settings: SampleSettings,
    *,
    batch: int = 16,
    networks: Networks | None = None,
    progress: bool = True,
    pictures: dict[str, Tensor] | None = None,
    keep_samples: Path | None = None,
) -> dict[str, Any]:
    """Return the report of a model.

    Args:
        target: what ``load_target`` returned.
        settings: the samples that quality is judged on.
        batch: samples of the forward that is timed; guidance makes two of one image.
        networks: files of the networks of FID, CLIP score and HPSv2; None leaves all out.
        progress: show progress bars on standard error.
        pictures: filled with the first samples of each model, by its column: base, dense, sparse.
        keep_samples: a folder for all samples, of each model one below it; what it holds is not made again.

    Returns:
        ``baseline``, the name of what was put on the model, or None; ``kept_tenths`` [L][R] (None without
        routers), ``mean_kept`` (None with a training-free baseline) and ``untrained_routers``, layers whose
        router nothing has trained; ``quality`` of ``Judge``, and the same figures for ``dense``, the same
        weights without routing, for ``base``, the model that a run started from, and for ``real`` held-out
        images; ``router_auc`` [L][timestep] where the data has object masks; ``cost`` of ``model_cost``, and
        how its layers were measured, ``layers_by``; ``published``, the row of the paper's table that is of
        this system and ratio, or None, and ``published_of_dense``, its costs as parts of the dense model's.
        Quality is None, with ``why_no_quality``, where the model does not make images of the data set,
        nothing tells the noise that it was trained with, or too few images are held out; ``base`` is left
        out, with ``why_no_base``, where it cannot be loaded any more. Of a model that its pipeline samples
        ``not_judged`` says what is missing. A run that repaints is judged by ``Repainting``: in place of
        ``base`` it has ``hidden``, a control that sees no picture; ``edit`` tells what an edit costs once.

    Raises:
        ValueError: a file or package of ``networks`` is missing, or ``keep_samples`` holds something else.
    """
    model, judge, why_not = target.model, None, "no data set is known for this model (see --dataset)"
    critics = Critics(networks or Networks(), model.device)
    row, layers_by = published_row(target), MEASURED_BY[model.device.type]
    report: dict[str, Any] = {
        "name": target.name,
        "dataset": target.dataset,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        **vars(settings),
        "variance": settings.variance(target),
        "kept_tenths": target.kept_tenths,
        "mean_kept": target.mean_kept,
        "baseline": target.baseline,
        "untrained_routers": target.untrained_routers,
        "published": None if row is None else asdict(row),
        "published_of_dense": {} if row is None else of_dense(row, batch),
    }
    text_tokens, side = PAPER_TEXT_TOKENS if model.config.get("caption_channels") else 0, None
    if target.dataset is not None:
        judge = judge_of(target, settings, progress)
        if judge.why_not(target) is None:
            side, text_tokens = judge.held_out.size, text_tokens and judge.held_out.text_tokens
        why_not = judge.why_not(target, quality=True)
    if why_not is None:
        quality = _Quality(judge, critics, {} if pictures is None else pictures, keep_samples)
        report |= quality.report(target)
    else:
        report |= {"quality": None, "why_no_quality": why_not}
    if target.repaints:
        report |= {"system": target.system.name, "masks": judge.arguments.masks}
        report["not_judged"] = [_UNCLASSIFIED] * target.in_latents + critics.networks.missing
        step = RepaintingStep(model, target.system, batch=batch, text_tokens=text_tokens)
        report["edit"], measure = step.once(), partial(step.cost, progress=progress)
    elif target.pipeline is not None:
        report["not_judged"] = _not_judged(target, critics.networks)
        held_out = judge.held_out if why_not is None else None
        measure = partial(target.pipeline.cost, held_out=held_out, batch=batch, progress=progress)
    else:
        how = {"batch": batch, "text_tokens": text_tokens, "side": side, "progress": progress}
        measure = partial(model_cost, layers=True, **how)
    return report | {"batch": batch, "cost": _cost(target, measure), "layers_by": layers_by}


def published_row(target: Target) -> Published | None:
    """Return the row of Table 1 or 4 that a model is the like of: the method of its run and the compression
    that it has come to, in percent, or its baseline, on PixArt of full size in its pipeline; None for all
    else."""
    if target.repaints and target.in_latents:
        task, system, side = "inpaint", target.system.name, 1024
    elif target.pipeline is not None and isinstance(target.pipeline.family, PixArtSigma):
        task, system, side = "t2i", "pixart-sigma", 512
    else:
        return None
    sizes = PUBLISHED_MODEL | {"sample_size": side // 8}
    if any(target.model.config[name] != size for name, size in sizes.items()):
        return None
    if target.options.get("resolution") not in (None, side):
        return None
    if target.baseline is not None:
        baseline = parse_baseline(target.baseline)
        # As the paper's FLOPs have them: ToMe merges in the MLP alone, AT-EDM copies.
        method = {"tome:mlp": "tome", "atedm": "atedm"}.get(baseline.name.rpartition(":")[0])
        return method and published(task, system, method, baseline.ratio)
    if target.run is None:
        return None
    method = target.run["arguments"]["method"]
    if task == "inpaint" and method in ("l", "lt"):
        method = "diffratio"  # which, Table 4 does not say
    return published(task, system, method, round(1 - target.mean_kept, 2))


_UNCLASSIFIED = "Frechet distance and accuracy, which need a classifier of the pictures"


def _not_judged(target: Target, networks: Networks) -> list[str]:
    """What a report on a model that its pipeline samples says nothing about."""
    missing = ["router scores against object masks"]
    return missing + [_UNCLASSIFIED] * target.in_latents + networks.missing


class _Quality:
    """The figures of a model, of its weights without routing, and of what a run began with."""

    def __init__(
        self, judge: Judge, critics: Critics, pictures: dict[str, Tensor], keep_samples: Path | None
    ) -> None:
        self.judge, self.critics, self.pictures, self.keep_samples = judge, critics, pictures, keep_samples

    def report(self, target: Target) -> dict[str, Any]:
        own = target.baseline or ("sparse" if target.routed else "model")
        found = {"quality": self.figures(target, "sampling", own), "real": self.judge.real}
        if target.routed:
            auc = None
            if target.pipeline is None and not target.repaints:
                auc = router_auc(target.model, self.judge.held_out, schedule=target.schedule)
            if auc is not None:
                found |= {"router_auc": auc, "router_auc_timesteps": list(TIMESTEPS)}
        if target.patched:
            disable_diffratio(target.model)
            try:
                found["dense"] = self.figures(target, "sampling dense", "dense")
            finally:
                enable_diffratio(target.model)
        if target.repaints:
            self.pictures["given"] = self.judge.given
            blind = _Quality(self.judge.blind(), self.critics, self.pictures, self.keep_samples)
            return found | {"hidden": blind.figures(target, "painting, hidden", "hidden")}
        if target.run is not None:
            try:
                base = target.load_base()
            except (ValueError, OSError) as error:
                return found | {"why_no_base": str(error)}
            found["base"] = self.figures(replace(target, model=base), "sampling the base", "base")
        return found

    def figures(self, target: Target, description: str, column: str) -> dict[str, Any]:
        folder, judge = None, self.judge
        if self.keep_samples is not None:
            settings, pipeline = dict(vars(judge.settings)), target.pipeline
            if (
                pipeline is not None or target.repaints
            ):  # the noise of an image does not depend on how many there are
                del settings["samples"]
            made_by = {
                "column": column,
                "weights": digest(target.model),
                "routing": _routing(target) if target.patched and column not in ("dense", "base") else None,
                "dtype": str(target.model.dtype),
                "images": judge.held_out.name,
                "pipeline": pipeline and pipeline.name,
            }
            folder = SampleFolder(self.keep_samples / column, made_by | settings)
        images, quality = judge(target, description, self.critics.scores(judge.held_out_images), folder)
        self.pictures[column] = images
        return quality


def _routing(target: Target) -> dict[str, Any]:
    return routed_model(target.model, baseline=True).config.to_dict()


def _cost(target: Target, measure: Callable[[nn.Module], dict]) -> dict[str, Any]:
    model = target.model
    if target.patched:
        return measure(model)
    route_blocks(model, DiffRatioConfig(compression=0.0))
    try:
        return measure(model)
    finally:
        remove_diffratio(model)
