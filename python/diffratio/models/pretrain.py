"""Pretraining of the small models. ``python -m diffratio.models.pretrain shapes OUT --steps 3200`` and, from
there, ``--from OUT --steps 2200 --seed 1`` and ``--from OUT --steps 6000 --seed 2`` made ``assets/shapes``.

One thread of a CPU is enough (about an hour). The same seed on the same machine and versions gives the same
weights; the log next to them says which they were.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import diffusers
import sklearn
import torch
import typer
from diffusers import DDPMScheduler, PixArtTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor

from ..data import BUILT_IN, CaptionedDataset, load_dataset
from ..evaluation.prediction import prediction_error
from ..progress import progress_bar
from .schedules import noise_schedule
from .small_pixart import load_pixart, small_pixart

LOG_FILE = "train_log.jsonl"

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""(n, generator) -> images [n, C, H, W] and tokens [n, M, E], some of them null"""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training, apart from the starting weights."""

    seed: int
    steps: int
    learning_rate: float
    batch: int = 64
    warmup: int = 100
    weight_decay: float = 0.01
    drop_text: float = 0.1
    ema: float = 0.998
    clip: float = 1.0
    log_every: int = 50
    validate_every: int = 500


class Log:
    """Writes one JSON object per line to a file, and to standard output when asked to."""

    def __init__(self, path: Path, echo: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        self._path, self._echo = path, echo

    def __call__(self, **entry: object) -> None:
        line = json.dumps(entry)
        with self._path.open("a") as file:
            file.write(line + "\n")
        if self._echo:
            print(line, flush=True)


def versions() -> dict[str, str]:
    """Return the versions that a training depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "scikit-learn": sklearn.__version__,
    }


def v_mse(
    model: PixArtTransformer2DModel,
    schedule: DDPMScheduler,
    images: Tensor,
    tokens: Tensor,
    timesteps: Tensor,
    noise: Tensor,
) -> Tensor:
    """Return the v-MSE, the mean squared error of the predicted velocity: a scalar.

    ``images`` and ``noise`` are ``[n, C, H, W]``, ``tokens`` ``[n, M, E]``, ``timesteps`` int64 ``[n]``.
    """
    noisy = schedule.add_noise(images, noise, timesteps)
    predicted = model(noisy, encoder_hidden_states=tokens, timestep=timesteps).sample
    return torch.nn.functional.mse_loss(predicted, schedule.get_velocity(images, noise, timesteps))


def fit(
    model: PixArtTransformer2DModel,
    draw: Draw,
    validate: Callable[[], float],
    recipe: Recipe,
    log: Callable[..., None],
) -> None:
    """Train ``model`` in place; at the end it holds the moving average of its weights."""
    schedule = noise_schedule()
    horizon = schedule.config.num_train_timesteps
    generator = torch.Generator().manual_seed(recipe.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
    )
    warmup = min(recipe.warmup, recipe.steps)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 1 - step / recipe.steps)
    )
    ema = EMAModel(parameters, decay=recipe.ema)
    model.train()
    losses: list[float] = []
    for step in progress_bar(range(1, recipe.steps + 1), desc="training", unit="step"):
        clean, tokens = draw(recipe.batch, generator)
        # One timestep from each of `batch` equal intervals: the same distribution with less variance.
        spread = torch.arange(recipe.batch) + torch.rand(recipe.batch, generator=generator)
        timesteps = (spread * horizon / recipe.batch).long()
        noise = torch.randn(clean.shape, generator=generator)
        loss = v_mse(model, schedule, clean, tokens, timesteps, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        rate.step()
        ema.step(parameters)
        losses.append(loss.item())
        if step % recipe.log_every == 0 or step == recipe.steps:
            entry = {"step": step, "loss": round(sum(losses) / len(losses), 5)}
            losses.clear()
            if step % recipe.validate_every == 0 or step == recipe.steps:
                ema.store(parameters)
                ema.copy_to(parameters)
                model.eval()
                entry["v_mse"] = round(validate(), 5)
                ema.restore(parameters)
                model.train()
            log(**entry)
    ema.copy_to(parameters)
    model.eval()


def train(
    name: str,
    model: PixArtTransformer2DModel,
    draw: Draw,
    validate: Callable[[], float],
    recipe: Recipe,
    log: Log,
) -> None:
    """``fit`` with a log of what was trained, on what, and how long it took."""
    parameters = sum(p.numel() for p in model.parameters())
    log(model=name, parameters=parameters, recipe=asdict(recipe), versions=versions())
    model.eval()
    log(step=0, v_mse=round(validate(), 5))
    start = time.perf_counter()
    fit(model, draw, validate, recipe, log)
    seconds = time.perf_counter() - start
    log(finished=True, seconds=round(seconds, 1), threads=torch.get_num_threads())


def draw_captioned(dataset: CaptionedDataset, drop_text: float) -> Draw:
    """Return a function that draws random items of ``dataset`` and drops the text of some."""

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = dataset.batch(torch.randint(len(dataset), (n,), generator=generator))
        dropped = torch.rand(n, 1, 1, generator=generator) < drop_text
        return batch["pixel_values"], torch.where(dropped, dataset.null_tokens, batch["tokens"])

    return draw


def main(
    name: Annotated[str, typer.Argument(help="The data set: shapes or digits.")],
    out: Annotated[Path, typer.Argument(help="Folder for the weights and the log.")],
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and noise.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 3200,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 48,
    start: Annotated[Path | None, typer.Option("--from", help="Folder of a model to go on from.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the log lines to standard output too.")
    ] = False,
) -> None:
    """Train a small PixArt, from nothing or on from another one."""
    if name not in BUILT_IN:
        raise typer.BadParameter(f"name={name!r} must be one of {', '.join(BUILT_IN)}")
    dataset, held_out = load_dataset(name), load_dataset(name, split="held_out")
    model = small_pixart(dataset, seed) if start is None else load_pixart(start)
    recipe = Recipe(seed, steps, learning_rate=1e-3, batch=batch)
    draw = draw_captioned(dataset, recipe.drop_text)
    log = Log(out / LOG_FILE, as_json)
    train(name, model, draw, lambda: prediction_error(model, held_out).overall, recipe, log)
    model.register_to_config(_name_or_path="")  # diffusers would write the folder that it was loaded from
    model.save_pretrained(out, safe_serialization=True)
    noise_schedule().save_pretrained(out / "scheduler")


if __name__ == "__main__":
    typer.run(main)
