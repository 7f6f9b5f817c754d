"""`evaluate`: quality, latency, FLOPs and memory of one model, as one report."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import DiffRatioConfig, disable_diffratio, enable_diffratio, remove_diffratio
from ..routing.apply import route_blocks
from .cost import model_cost
from .flops.shapes import PAPER_TEXT_TOKENS
from .inpainting import RepaintingStep, repainting_report
from .published import ClipScore, Fid
from .quality import Judge, SampleSettings
from .router_maps import TIMESTEPS, router_auc
from .target import Target


def evaluate(
    target: Target,
    settings: SampleSettings,
    *,
    batch: int = 16,
    fid_weights: Path | None = None,
    clip_weights: Path | None = None,
    progress: bool = True,
    pictures: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Return the report of a model.

    Args:
        target: what ``load_target`` returned.
        settings: the samples that quality is judged on.
        batch: samples of the forward that is timed; guidance makes two of one image.
        fid_weights, clip_weights: files of FID's and CLIP's networks; None leaves the metric out.
        progress: show progress bars on standard error.
        pictures: filled with the samples of each model, by its column: base, dense, sparse.

    Returns:
        ``baseline``, the name of what was put on the model, or None; ``kept_tenths`` [L][R] (None without
        routers), ``mean_kept`` (None with a training-free baseline) and ``untrained_routers``, layers whose
        router nothing has trained; ``quality`` of ``Judge``, and the same figures for ``dense``, the same
        weights without routing, for ``base``, the model that a run started from, and for ``real`` held-out
        images; ``router_auc`` [L][timestep] where the data has object masks; ``cost`` of ``model_cost``.
        Quality is None, with ``why_no_quality``, where the model does not make images of the data set,
        nothing tells the noise that it was trained with, or too few images are held out; ``base`` is left
        out, with ``why_no_base``, where it cannot be loaded any more. Of a flow model's pipeline
        ``not_judged`` says what is missing. A run that repaints is judged by ``repainting_report`` instead,
        and ``edit`` tells what an edit costs once.
    """
    model = target.model
    fid = Fid(fid_weights, model.device) if fid_weights is not None else None
    clip_score = ClipScore(clip_weights, model.device) if clip_weights is not None else None
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
    }
    why_not = "no data set is known for this model (see --dataset)"
    text_tokens, side = PAPER_TEXT_TOKENS if model.config.get("caption_channels") else 0, None
    if target.repaints:
        report |= repainting_report(target, settings, progress=progress, pictures=pictures)
        step = RepaintingStep(model, target.system, batch=batch, text_tokens=text_tokens)
        cost = _cost(target, partial(step.cost, progress=progress))
        return report | {"batch": batch, "cost": cost, "edit": step.once()}
    judge = None
    if target.dataset is not None:
        judge = Judge.of(target, settings, progress)
        if judge.why_not(target) is None:
            side, text_tokens = judge.held_out.size, text_tokens and judge.held_out.text_tokens
        why_not = judge.why_not(target, quality=True)
    if why_not is None:
        report |= _quality(target, judge, fid, clip_score, {} if pictures is None else pictures)
    else:
        report |= {"quality": None, "why_no_quality": why_not}
    if target.flow is not None:
        report["not_judged"] = _not_judged(target, fid, clip_score)
        held_out = judge.held_out if why_not is None else None
        measure = partial(target.flow.cost, held_out=held_out, batch=batch, progress=progress)
    else:
        measure = partial(model_cost, batch=batch, text_tokens=text_tokens, side=side, progress=progress)
    return report | {"batch": batch, "cost": _cost(target, measure)}


def _not_judged(target: Target, fid: Fid | None, clip_score: ClipScore | None) -> list[str]:
    """What a report on a flow model says nothing about."""
    missing = ["router scores against object masks"]
    if not target.flow.family.on_pixels:
        missing += ["Frechet distance and accuracy, which need a classifier of the pictures"]
    missing += [] if fid else ["FID (--fid-weights)"]
    return missing + ([] if clip_score else ["CLIP score (--clip-weights)"])


def _quality(
    target: Target, judge: Judge, fid: Fid | None, clip_score: ClipScore | None, pictures: dict[str, Tensor]
) -> dict[str, Any]:
    def figures(judged: Target, description: str, column: str) -> dict[str, Any]:
        images, quality = judge(judged, description)
        pictures[column] = images
        if fid is not None:
            quality["fid"] = fid(judge.reference, images)
        if clip_score is not None:
            quality["clip_score"] = clip_score(images, judge.held_out.captions(judge.wanted))
        return quality

    own = target.baseline or ("sparse" if target.routed else "model")
    found = {"quality": figures(target, "sampling", own), "real": judge.real}
    if target.routed:
        auc = None
        if target.flow is None:
            auc = router_auc(target.model, judge.held_out, schedule=target.schedule)
        if auc is not None:
            found |= {"router_auc": auc, "router_auc_timesteps": list(TIMESTEPS)}
    if target.patched:
        disable_diffratio(target.model)
        try:
            found["dense"] = figures(target, "sampling dense", "dense")
        finally:
            enable_diffratio(target.model)
    if target.run is not None:
        try:
            base = target.load_base()
        except (ValueError, OSError) as error:
            return found | {"why_no_base": str(error)}
        found["base"] = figures(replace(target, model=base), "sampling the base", "base")
    return found


def _cost(target: Target, measure: Callable[[nn.Module], dict]) -> dict[str, Any]:
    model = target.model
    if target.patched:
        return measure(model)
    route_blocks(model, DiffRatioConfig(compression=0.0))
    try:
        return measure(model)
    finally:
        remove_diffratio(model)
