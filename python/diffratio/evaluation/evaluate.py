"""`evaluate`: quality, latency, FLOPs and memory of one model, as one report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import DiffRatioConfig, disable_diffratio, enable_diffratio, remove_diffratio
from ..routing.apply import route_blocks
from .cost import model_cost
from .flops.shapes import PAPER_TEXT_TOKENS
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
) -> dict[str, Any]:
    """Return the report of a model.

    Args:
        target: what ``load_target`` returned.
        settings: the samples that quality is judged on.
        batch: samples of the forward that is timed; guidance makes two of one image.
        fid_weights, clip_weights: files of FID's and CLIP's networks; None leaves the metric out.
        progress: show progress bars on standard error.

    Returns:
        ``kept_tenths`` [L][R] (None for a dense model), ``mean_kept`` and ``untrained_routers``, layers whose
        router nothing has trained; ``quality`` of ``Judge``, and the same figures for ``dense``, the same
        weights without routing, for ``base``, the model that a run started from, and for ``real`` held-out
        images; ``router_auc`` [L][timestep] where the data has object masks; ``cost`` of ``model_cost``.
        Quality is None, with ``why_no_quality``, where the model does not make images of the data set,
        nothing tells the noise that it was trained with, or too few images are held out; ``base`` is left
        out, with ``why_no_base``, where it cannot be loaded any more.
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
        "kept_tenths": target.kept_tenths,
        "mean_kept": target.mean_kept,
        "untrained_routers": target.untrained_routers,
    }
    why_not = "no data set is known for this model (see --dataset)"
    text_tokens, side = PAPER_TEXT_TOKENS if model.config.get("caption_channels") else 0, None
    if target.dataset is not None:
        judge = Judge.of(target, settings, progress)
        if judge.why_not(target) is None:
            side, text_tokens = judge.held_out.size, text_tokens and judge.held_out.text_tokens
        why_not = judge.why_not(target, quality=True)
    if why_not is None:
        report |= _quality(target, judge, fid, clip_score)
    else:
        report |= {"quality": None, "why_no_quality": why_not}
    return report | {"batch": batch, "cost": _cost(target, batch, side, text_tokens, progress)}


def _quality(target: Target, judge: Judge, fid: Fid | None, clip_score: ClipScore | None) -> dict[str, Any]:
    def figures(judged: Target, description: str) -> dict[str, Any]:
        images, quality = judge(judged, description)
        if fid is not None:
            quality["fid"] = fid(judge.reference, images)
        if clip_score is not None:
            quality["clip_score"] = clip_score(images, judge.held_out.captions(judge.wanted))
        return quality

    found = {"quality": figures(target, "sampling"), "real": judge.real}
    if target.routed:
        auc = router_auc(target.model, judge.held_out, schedule=target.schedule)
        if auc is not None:
            found |= {"router_auc": auc, "router_auc_timesteps": list(TIMESTEPS)}
        disable_diffratio(target.model)
        try:
            found["dense"] = figures(target, "sampling dense")
        finally:
            enable_diffratio(target.model)
    if target.run is not None:
        try:
            base = target.load_base()
        except (ValueError, OSError) as error:
            return found | {"why_no_base": str(error)}
        found["base"] = figures(replace(target, model=base), "sampling the base")
    return found


def _cost(target: Target, batch: int, side: int | None, text_tokens: int, progress: bool) -> dict[str, Any]:
    model = target.model
    options = {"batch": batch, "text_tokens": text_tokens, "side": side, "progress": progress}
    if target.routed:
        return model_cost(model, **options)
    route_blocks(model, DiffRatioConfig(compression=0.0))
    try:
        return model_cost(model, **options)
    finally:
        remove_diffratio(model)
