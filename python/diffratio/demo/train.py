"""The script that made ``assets/``: ``python -m diffratio.demo.train dense`` and then ``... mod``.

One thread of a CPU is enough (about 25 and 5 minutes). The same seed on the same machine and versions
gives the same weights; the log next to them says which they were.
"""

import json
import platform
import sys
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
from tqdm import tqdm

from .. import DiffRatioConfig, apply_diffratio, remove_diffratio, save_diffratio
from .digits import CLASSES, NULL_CLASS, augment, load_split, make_class_tokens
from .model import ASSETS, build_model, load_model, noise_schedule, save_model

LOG_FILE = "train_log.jsonl"

app = typer.Typer(help="Train the demo's digit models.", add_completion=False)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training, apart from the starting weights."""

    seed: int
    steps: int
    learning_rate: float
    batch: int = 64
    warmup: int = 100
    weight_decay: float = 0.01
    drop_class: float = 0.1
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


def velocity_loss(
    model: PixArtTransformer2DModel,
    schedule: DDPMScheduler,
    images: Tensor,
    tokens: Tensor,
    timesteps: Tensor,
    noise: Tensor,
) -> Tensor:
    """Return the mean squared error of the predicted velocity, a scalar.

    ``images`` and ``noise`` are ``[n, 1, 8, 8]``, ``tokens`` ``[n, 4, 32]``, ``timesteps`` int64 ``[n]``.
    """
    noisy = schedule.add_noise(images, noise, timesteps)
    predicted = model(noisy, encoder_hidden_states=tokens, timestep=timesteps).sample
    return torch.nn.functional.mse_loss(predicted, schedule.get_velocity(images, noise, timesteps))


@torch.no_grad()
def validate(model: PixArtTransformer2DModel, class_tokens: Tensor) -> float:
    """Return the velocity loss on the held-out digits, at noise and timesteps that never change."""
    images, labels = load_split("held_out")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    timesteps = torch.linspace(0, 999, len(images)).long()[torch.randperm(len(images), generator=generator)]
    images, labels, noise, timesteps = (x.to(class_tokens.device) for x in (images, labels, noise, timesteps))
    return velocity_loss(model, noise_schedule(), images, class_tokens[labels], timesteps, noise).item()


def fit(
    model: PixArtTransformer2DModel, class_tokens: Tensor, recipe: Recipe, log: Callable[..., None]
) -> None:
    """Train ``model`` in place; at the end it holds the moving average of its weights."""
    images, labels = load_split("train")
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
    for step in tqdm(range(1, recipe.steps + 1), desc="training", unit="step", file=sys.stderr):
        rows = torch.randint(len(images), (recipe.batch,), generator=generator)
        clean = augment(images[rows], generator)
        dropped = torch.rand(recipe.batch, generator=generator) < recipe.drop_class
        tokens = class_tokens[torch.where(dropped, NULL_CLASS, labels[rows])]
        # One timestep from each of `batch` equal intervals: the same distribution with less variance.
        spread = torch.arange(recipe.batch) + torch.rand(recipe.batch, generator=generator)
        timesteps = (spread * horizon / recipe.batch).long()
        noise = torch.randn(clean.shape, generator=generator)
        loss = velocity_loss(model, schedule, clean, tokens, timesteps, noise)
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
                entry["held_out_loss"] = round(validate(model.eval(), class_tokens), 5)
                ema.restore(parameters)
                model.train()
            log(**entry)
    ema.copy_to(parameters)
    model.eval()


def _train(
    kind: str, model: PixArtTransformer2DModel, class_tokens: Tensor, recipe: Recipe, out: Path, echo: bool
) -> None:
    log = Log(out / LOG_FILE, echo)
    parameters = sum(p.numel() for p in model.parameters())
    log(model=kind, parameters=parameters, classes=CLASSES, recipe=asdict(recipe), versions=versions())
    log(step=0, held_out_loss=round(validate(model.eval(), class_tokens), 5))
    start = time.perf_counter()
    fit(model, class_tokens, recipe, log)
    seconds = time.perf_counter() - start
    log(finished=True, seconds=round(seconds, 1), threads=torch.get_num_threads())


Seed = Annotated[int, typer.Option(help="Seed of weights, batches and noise.")]
Json = Annotated[bool, typer.Option("--json", help="Print the log lines to standard output too.")]


@app.command()
def dense(
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 4000,
    out: Annotated[Path, typer.Option(help="Folder for the weights and the log.")] = ASSETS / "dense",
    json_lines: Json = False,
) -> None:
    """Train the dense model from nothing."""
    model, class_tokens = build_model(seed), make_class_tokens(seed)
    _train("dense", model, class_tokens, Recipe(seed, steps, learning_rate=1e-3), out, json_lines)
    save_model(model, class_tokens, out)


@app.command()
def mod(
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1000,
    compression: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of tokens that skip a block.")
    ] = 0.3,
    dense_model: Annotated[Path, typer.Option("--from", help="Folder of the dense model.")] = ASSETS
    / "dense",
    out: Annotated[Path, typer.Option(help="Folder for the weights, adapter and log.")] = ASSETS / "mod30",
    json_lines: Json = False,
) -> None:
    """Fine-tune the dense model with uniform token routing in every block."""
    model, class_tokens = load_model(dense_model)
    torch.manual_seed(seed)  # the routers start from small random weights
    apply_diffratio(model, DiffRatioConfig(compression=compression))
    recipe = Recipe(seed, steps, learning_rate=3e-4)
    _train(f"uniform MoD, compression {compression}", model, class_tokens, recipe, out, json_lines)
    save_diffratio(model, out)
    remove_diffratio(model)
    save_model(model, class_tokens, out)


if __name__ == "__main__":
    app()
