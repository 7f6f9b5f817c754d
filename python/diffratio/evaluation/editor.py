"""What repaints pictures, of what commands are given: a run, a pipeline, or a model on pixels."""

from ..data import load_dataset
from ..diffusion import sampling_scheduler
from ..diffusion.pipelines import read_index
from ..diffusion.schedules import latents_scheduler
from ..diffusion.variance import predicts_variance
from ..inpainting.edit import pipeline_of
from ..inpainting.lazy import LazyPixArt
from ..inpainting.pipeline import DiffRatioInpaintPipeline
from ..inpainting.systems import system_of
from ..names import on_disk
from .target import Target


def editor_of(
    target: Target, path: str | None, system: str | None = None, sampler: str | None = None
) -> DiffRatioInpaintPipeline:
    """Return the pipeline around a target's model.

    Args:
        target: of ``load_target``.
        path: what it was loaded from; None: a run.
        system: "lazy", "image" or "crop"; None is the run's, or lazy for such a model.
        sampler: "dpm++" or "ddpm"; None is that of the run's recipe, else "dpm++", and of a pipeline that is
            no run its own scheduler.

    Raises:
        ValueError: the model is of another system, or nothing tells which it is of, or what its text and its
            noise are, or the pipeline that a run began with cannot be loaded.
    """
    run, name = target.run or {}, _pipeline_name(target, path)
    system = system or run.get("arguments", {}).get("system")
    if system is None:
        if not isinstance(target.model, LazyPixArt):
            raise ValueError(f"system: must be given for {target.name!r}: image or crop")
        system = "lazy"
    if run or name is None:
        sampler = sampler or run.get("sampling", {}).get("sampler", "dpm++")
    learned = predicts_variance(target.model, system_of(system).channels(target.model))
    if name is not None:
        pipe = _loaded(target, name, system)
        if sampler is not None:
            pipe.scheduler = latents_scheduler(pipe.scheduler.config, sampler, learned)
        return pipe
    if target.dataset is None:
        raise ValueError(f"dataset: none is known for {target.name!r}, so nothing tells what its text is")
    if target.why_no_schedule is not None:
        raise ValueError(f"path: {target.why_no_schedule}")
    scheduler = sampling_scheduler(target.schedule, sampler, learned)
    dataset = load_dataset(target.dataset, split="held_out", **target.options)
    return pipeline_of(target.model, system, scheduler, dataset)


def _pipeline_name(target: Target, path: str | None) -> str | None:
    """The folder or hub id of the pipeline that a target is a part of; None for a model on pixels."""
    if path is not None and on_disk(path) and read_index(path) is not None:
        return path
    if target.run is not None:
        return target.run["base_model"] if target.run.get("latents") else None
    return None if target.pipeline is None else target.pipeline.name


def _loaded(target: Target, name: str, system: str) -> DiffRatioInpaintPipeline:
    revision = (target.run or {}).get("arguments", {}).get("revision")
    given = {"transformer": target.model, "system": system, "dtype": target.model.dtype}
    hub = {"revision": revision, "local_files_only": on_disk(name)}
    reason = system_of(system).why_not(target.model)
    if reason is not None:
        raise ValueError(f"path: {reason}")
    try:
        pipe = DiffRatioInpaintPipeline.from_pretrained(name, **given, **hub)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"path: the pipeline {name!r} of {target.name!r} cannot be loaded: {reason}"
        ) from None
    return pipe.to(target.model.device)
