"""`inpaint`: one call from a picture, a mask and a prompt to pictures."""

from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from ..data import CaptionedDataset
from ..diffusion import sampling_scheduler
from .pictures import Pictures
from .pipeline import DiffRatioInpaintPipeline


def pipeline_of(
    model: DiffusionPipeline | nn.Module,
    system: str,
    scheduler: SchedulerMixin | None = None,
    dataset: CaptionedDataset | None = None,
) -> DiffRatioInpaintPipeline:
    """The pipeline around a model of a system.

    Args:
        model: a pipeline with PixArt's parts, or a transformer that works on pixels.
        system: "lazy", "image" or "crop".
        scheduler: None is the pipeline's own, or DPM-Solver++ on the noise of the package's models.
        dataset: whose text a model on pixels reads.

    Raises:
        ValueError: the model is not one of the system.
    """
    parts = dict.fromkeys(("tokenizer", "text_encoder", "vae", "transformer", "scheduler"))
    if isinstance(model, nn.Module):
        parts |= {"transformer": model, "scheduler": sampling_scheduler()}
    else:
        parts |= {name: part for name, part in model.components.items() if name in parts}
        dataset = getattr(model, "dataset", None) if dataset is None else dataset
    if scheduler is not None:
        parts["scheduler"] = scheduler
    pipe = DiffRatioInpaintPipeline(**parts, system=system)
    pipe.dataset = dataset
    pipe.set_progress_bar_config(disable=None)  # on terminals only
    return pipe


def inpaint(
    model: DiffusionPipeline | nn.Module,
    image: Pictures,
    mask: Pictures,
    prompt: str | list[str] | None = None,
    system: str = "lazy",
    steps: int = 100,
    guidance: float = 4.5,
    **options,
):
    """Repaint the masked part of pictures; everything else comes back as it was, bit by bit.

    Args:
        model: a pipeline with PixArt's parts whose transformer is of the system, or what `pipeline_of` gives
            for a transformer that works on pixels.
        image: one or a batch: PIL, an array [H, W, C] or a tensor [C, H, W] in [0, 1].
        mask: of the same size; white is repainted.
        prompt: what is to be seen there, one for all pictures or one of each.
        system: "lazy" (the hole's tokens alone), "image" (all tokens) or "crop" (a square around the mask).
        steps: of the scheduler.
        guidance: weight of classifier-free guidance, 1 is none.
        options: of `DiffRatioInpaintPipeline.__call__`: generator, strength, output_type ...

    Returns:
        A list of PIL images, or what `output_type` says.

    Raises:
        ValueError: an argument that does not fit the model or another one; the text names it.

    Example:
        >>> [picture] = inpaint(pipe, photo, mask, "a red fox")
    """
    if not isinstance(model, DiffRatioInpaintPipeline) or model.config.system != system:
        model = pipeline_of(model, system)
    given = {"num_inference_steps": steps, "guidance_scale": guidance, **options}
    return model(prompt, image=image, mask_image=mask, **given).images
