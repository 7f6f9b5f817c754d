"""`evaluate`: quality, latency, FLOPs and memory of one model, as one report."""

from pathlib import Path
from typing import Any

from torch import nn

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
    judge, why_not = None, "no data set is known for this model (see --dataset)"
    if target.dataset is not None:
        judge = target.judge(settings, progress)
        why_not = target.why_not(judge)
    text_tokens, side = 0, judge.held_out.size if why_not is None else None
    if model.config.get("caption_channels"):
        text_tokens = judge.held_out.text_tokens if why_not is None else PAPER_TEXT_TOKENS
    if why_not is None:
        why_not = judge.why_no_quality
    if why_not is None:
        report |= _quality(target, judge, fid, clip_score)
    else:
        report |= {"quality": None, "why_no_quality": why_not}
    return report | {"batch": batch, "cost": _cost(target, batch, side, text_tokens, progress)}


def _quality(target: Target, judge: Judge, fid: Fid | None, clip_score: ClipScore | None) -> dict[str, Any]:
    def figures(model: nn.Module, description: str) -> dict[str, Any]:
        images, quality = judge(model, description, target.schedule)
        if fid is not None:
            quality["fid"] = fid(judge.reference, images)
        if clip_score is not None:
            quality["clip_score"] = clip_score(images, judge.held_out.captions(judge.wanted))
        return quality

    found = {"quality": figures(target.model, "sampling"), "real": judge.real}
    if target.routed:
        auc = router_auc(target.model, judge.held_out, schedule=target.schedule)
        if auc is not None:
            found |= {"router_auc": auc, "router_auc_timesteps": list(TIMESTEPS)}
        disable_diffratio(target.model)
        try:
            found["dense"] = figures(target.model, "sampling dense")
        finally:
            enable_diffratio(target.model)
    if target.run is not None:
        try:
            base = target.load_base()
        except (ValueError, OSError) as error:
            return found | {"why_no_base": str(error)}
        found["base"] = figures(base, "sampling the base")
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
