"""The loss on held-out images, at noise and timesteps that never change."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from .objective import Objective


@torch.no_grad()
def validate(
    accelerator: Accelerator, model: nn.Module, objective: Objective, loader: DataLoader, regions: int
) -> dict:
    """`validation_loss`, and `validation_by_region` from the cleanest timesteps to the noisiest.

    The images are shared out among the processes; the result is the same on all of them.
    """
    training = model.training
    model.eval()
    losses, timesteps = [], []
    for batch in loader:
        with accelerator.autocast():
            error = objective(model, batch)
        error, timestep = accelerator.gather_for_metrics((error, batch["timestep"]))
        losses.append(error.double().cpu())
        timesteps.append(timestep.cpu())
    model.train(training)
    error, timestep = torch.cat(losses), torch.cat(timesteps)
    horizon = objective.scheduler.config.num_train_timesteps
    region = (timestep * regions // horizon).clamp(max=regions - 1)
    means = [error[region == r] for r in range(regions)]
    return {
        "validation_loss": error.mean().item(),
        "validation_by_region": [one.mean().item() if len(one) else None for one in means],
    }
