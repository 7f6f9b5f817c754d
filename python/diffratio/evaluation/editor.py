"""What repaints pictures, of what commands are given: a run, a pipeline, or a model on pixels."""

from pathlib import Path

from diffusers import DiffusionPipeline

from ..data import load_dataset
from ..diffusion import sampling_scheduler
from ..diffusion.schedules import latents_scheduler
from ..diffusion.variance import predicts_variance
from ..inpainting.edit import pipeline_of
from ..inpainting.lazy import LazyPixArt
from ..inpainting.pipeline import DiffRatioInpaintPipeline
from ..inpainting.systems import system_of
from ..names import on_disk
from .target import Target


def editor_of(target: Target, path: str, system: str | None = None) -> DiffRatioInpaintPipeline:
    """Return the pipeline around a target's model.

    Args:
        target: of ``load_target``.
        path: what it was loaded from.
        system: "lazy", "image" or "crop"; None is the run's, or lazy for such a model.

    Raises:
        ValueError: the model is of another system, or nothing tells which it is of, or what its text and its
            noise are.
    """
    run = target.run or {}
    given, base = run.get("arguments", {}), run.get("base_model")
    if system is None:
        system = given.get("system")
    if system is None:
        if not isinstance(target.model, LazyPixArt):
            raise ValueError(f"system: must be given for {target.name!r}: image or crop")
        system = "lazy"
    sampler = run.get("sampling", {}).get("sampler")
    learned = predicts_variance(target.model, system_of(system).channels(target.model))
    for name in filter(None, (path, base)):
        of_hub = name == base and run.get("latents") and not on_disk(name)
        if of_hub or (Path(name) / DiffusionPipeline.config_name).is_file():
            options = {"transformer": target.model, "system": system, "revision": given.get("revision")}
            pipe = DiffRatioInpaintPipeline.from_pretrained(name, **options, local_files_only=not of_hub)
            if sampler is not None:  # of the run's recipe
                pipe.scheduler = latents_scheduler(pipe.scheduler.config, sampler, learned)
            return pipe.to(target.model.device)
    if target.dataset is None:
        raise ValueError(f"dataset: none is known for {target.name!r}, so nothing tells what its text is")
    if target.why_no_schedule is not None:
        raise ValueError(f"path: {target.why_no_schedule}")
    scheduler = sampling_scheduler(target.schedule, sampler or "dpm++", learned)
    dataset = load_dataset(target.dataset, split="held_out", **target.options)
    return pipeline_of(target.model, system, scheduler, dataset)
