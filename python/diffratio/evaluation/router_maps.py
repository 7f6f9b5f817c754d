"""Do routers look at objects? The area under the ROC curve of their scores against object masks."""

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ..data import CaptionedDataset
from ..diffusion import noise_schedule
from ..routing.find import routed_blocks, routed_model

TIMESTEPS = (124, 374, 624, 874)  # the middle of each quarter
_OBJECT, _BACKGROUND = 0.5, 0.05  # part of a token that the object covers


@torch.no_grad()
def router_logits(
    model: nn.Module,
    images: Tensor,
    tokens: Tensor,
    timestep: int,
    schedule: DDPMScheduler | None = None,
) -> Tensor:
    """Return the routers' logits ``[L, B, N]`` at one timestep, for images ``[B, C, H, W]`` that get noise of
    seed 0 by ``schedule`` (None: that of the package's models) and text ``[B, M, E]``."""
    routed_model(model)
    logits: list[Tensor] = []

    def collect(block: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        logits.append(block.diffratio(x, x.shape[1])[2].float().cpu())

    hooks = [
        block.register_forward_pre_hook(collect, with_kwargs=True, prepend=True)
        for block in routed_blocks(model)
    ]
    timesteps = torch.full((len(images),), timestep)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    schedule = noise_schedule() if schedule is None else schedule
    noisy = schedule.add_noise(images, noise, timesteps)
    try:
        model(
            noisy.to(model.device, model.dtype),
            encoder_hidden_states=tokens.to(model.device, model.dtype),
            timestep=timesteps.to(model.device),
        )
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(logits)


def token_masks(masks: Tensor, patch_size: int) -> Tensor:
    """Return the part of each token that the object covers, ``[B, N]``, from masks ``[B, H, W]``."""
    return nn.functional.avg_pool2d(masks[:, None], patch_size).flatten(1)


def auc(scores: Tensor, covered: Tensor) -> float:
    """Return how often a token of the object scores higher than one of the background, ties counting half.

    Both are ``[B, N]``. Tokens on an outline (covered between 5 % and 50 %) are left out; pairs are formed
    within a sample, since routers choose among its tokens alone, and samples count alike.
    """
    shares = []
    for row, mask in zip(scores.double(), covered, strict=True):
        inside, outside = row[mask > _OBJECT], row[mask < _BACKGROUND]
        if len(inside) and len(outside):
            difference = inside[:, None] - outside
            shares.append((difference > 0).double().mean() + (difference == 0).double().mean() / 2)
    if not shares:
        raise ValueError("covered: no sample has tokens of the object and of the background")
    return torch.stack(shares).mean().item()


def router_auc(
    model: nn.Module,
    dataset: CaptionedDataset,
    samples: int = 64,
    timesteps: Sequence[int] = TIMESTEPS,
    schedule: DDPMScheduler | None = None,
) -> list[list[float]] | None:
    """Return the AUC of every layer at every timestep, ``[L][len(timesteps)]``; None without object masks.

    ``schedule`` is what the model was trained with; None is that of the package's models.
    """
    indices = range(min(samples, len(dataset)))
    masks = dataset.masks(indices)
    if masks is None:
        return None
    covered = token_masks(masks, model.config.patch_size)
    batch = dataset.batch(indices)
    columns = [router_logits(model, batch["pixel_values"], batch["tokens"], t, schedule) for t in timesteps]
    return [[auc(logits[layer], covered) for logits in columns] for layer in range(len(columns[0]))]
