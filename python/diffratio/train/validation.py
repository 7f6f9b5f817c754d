"""The loss on held-out images, at noise and timesteps that never change."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from ..progress import progress_bar
from .objective import Objective


@torch.no_grad()
def validate(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    loader: DataLoader,
    regions: int,
    progress: bool = False,
) -> dict:
    """`validation_loss`, and `validation_by_region` from the cleanest timesteps to the noisiest.

    The images are shared out among the processes; the result is the same on all of them.
    """
    training = model.training
    model.eval()
    losses, timesteps, rows = [], [], []
    for batch in progress_bar(loader, show=progress, desc="validating", unit="batch", leave=False):
        with accelerator.autocast():
            error = objective(model, batch)
        error, timestep, row = accelerator.gather((error, batch["timestep"], batch["row"]))
        losses.append(error.double().cpu())
        timesteps.append(timestep.cpu())
        rows += row.tolist()
    model.train(training)
    # Processes get equally many batches of one size: some images twice.
    once = sorted({row: place for place, row in reversed([*enumerate(rows)])}.values())
    error, timestep = torch.cat(losses)[once], torch.cat(timesteps)[once]
    horizon = objective.scheduler.config.num_train_timesteps
    region = (timestep * regions // horizon).clamp(max=regions - 1)
    means = [error[region == r] for r in range(regions)]
    return {
        "validation_loss": error.mean().item(),
        "validation_by_region": [one.mean().item() if len(one) else None for one in means],
    }
