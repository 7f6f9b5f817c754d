"""`inpaint`: one call from a picture, a mask and a prompt to pictures."""

import torch
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from ..data import CaptionedDataset
from ..diffusion import sampling_scheduler
from .pictures import Pictures
from .pipeline import DiffRatioInpaintPipeline


def pipeline_of(
    model: DiffusionPipeline | nn.Module, system: str, scheduler: SchedulerMixin | None = None
) -> DiffRatioInpaintPipeline:
    """The pipeline around a model of a system.

    Args:
        model: a pipeline with PixArt's parts, or a transformer that works on pixels.
        system: "lazy", "image" or "crop".
        scheduler: None is the pipeline's own, or DPM-Solver++ on the noise of the package's models.

    Raises:
        ValueError: the model is not one of the system.
    """
    if isinstance(model, DiffRatioInpaintPipeline) and model.config.system == system and scheduler is None:
        return model
    parts = dict.fromkeys(("tokenizer", "text_encoder", "vae", "transformer", "scheduler"))
    if isinstance(model, nn.Module):
        parts |= {"transformer": model, "scheduler": sampling_scheduler()}
    else:
        parts |= {name: part for name, part in model.components.items() if name in parts}
    if scheduler is not None:
        parts["scheduler"] = scheduler
    pipe = DiffRatioInpaintPipeline(**parts, system=system)
    pipe.set_progress_bar_config(disable=None)  # on terminals only
    return pipe


def inpaint(
    model: DiffusionPipeline | nn.Module,
    image: Pictures,
    mask: Pictures,
    prompt: str | list[str],
    *,
    system: str = "lazy",
    steps: int = 100,
    guidance: float = 4.5,
    seed: int = 0,
    dataset: CaptionedDataset | None = None,
    **options,
):
    """Repaint the masked part of pictures; everything else comes back as it was, bit by bit.

    Args:
        model: a pipeline with PixArt's parts whose transformer is of the system, or such a transformer that
            works on pixels.
        image: one or a batch: PIL, an array [H, W, C] or a tensor [C, H, W] in [0, 1].
        mask: of the same size; white is repainted.
        prompt: what is to be seen there, one for all pictures or one of each.
        system: "lazy" (the hole's tokens alone), "image" (all tokens) or "crop" (a square around the mask).
        steps: of the scheduler.
        guidance: weight of classifier-free guidance, 1 is none.
        seed: of the noise.
        dataset: whose text a model on pixels reads.
        options: of `DiffRatioInpaintPipeline.__call__`: strength, num_images_per_prompt, output_type ...

    Returns:
        A list of PIL images, or what `output_type` says.

    Raises:
        ValueError: an argument that does not fit the model or another one; the text names it.

    Example:
        >>> [picture] = inpaint(pipe, photo, mask, "a red fox")
    """
    text = {"prompt": prompt}
    if dataset is not None:
        text = _encoded(dataset, prompt, options.pop("negative_prompt", ""))
    return pipeline_of(model, system)(
        image=image,
        mask_image=mask,
        **text,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        **options,
    ).images


def _encoded(
    dataset: CaptionedDataset, prompt: str | list[str], negative: str | list[str]
) -> dict[str, Tensor]:
    """Text as a data set has it; "" leads away from nothing."""
    tokens = dataset.encode([prompt] if isinstance(prompt, str) else prompt)
    if negative:
        null = dataset.encode([negative] if isinstance(negative, str) else negative)
    else:
        null = dataset.null_tokens[None]
    return {"prompt_embeds": tokens, "negative_prompt_embeds": null.expand_as(tokens)}
