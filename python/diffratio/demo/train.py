"""The script that made ``assets/``: ``python -m diffratio.demo.train dense`` and then ``... mod``.

One thread of a CPU is enough (about 25 and 5 minutes). The same seed on the same machine and versions
gives the same weights; the log next to them says which they were.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from .. import DiffRatioConfig, apply_diffratio, remove_diffratio, save_diffratio
from ..data.digits import NULL_CLASS, augment, load_split, make_class_tokens
from ..models import noise_schedule
from ..models.pretrain import LOG_FILE, Draw, Log, Recipe, train, velocity_loss
from .model import ASSETS, build_model, load_model, save_model

app = typer.Typer(help="Train the demo's digit models.", add_completion=False)


@torch.no_grad()
def validate(model: PixArtTransformer2DModel, class_tokens: Tensor) -> float:
    """Return the velocity loss on the held-out digits, at noise and timesteps that never change."""
    images, labels = load_split("held_out")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    timesteps = torch.linspace(0, 999, len(images)).long()[torch.randperm(len(images), generator=generator)]
    images, labels, noise, timesteps = (x.to(class_tokens.device) for x in (images, labels, noise, timesteps))
    return velocity_loss(model, noise_schedule(), images, class_tokens[labels], timesteps, noise).item()


def draw_digits(class_tokens: Tensor, drop_text: float) -> Draw:
    """Return a function that draws augmented training digits, some of them without a class."""
    images, labels = load_split("train")

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(images), (n,), generator=generator)
        clean = augment(images[rows], generator)
        dropped = torch.rand(n, generator=generator) < drop_text
        return clean, class_tokens[torch.where(dropped, NULL_CLASS, labels[rows])]

    return draw


def _train(
    name: str, model: PixArtTransformer2DModel, class_tokens: Tensor, recipe: Recipe, out: Path, echo: bool
) -> None:
    draw = draw_digits(class_tokens, recipe.drop_text)
    train(name, model, draw, lambda: validate(model, class_tokens), recipe, Log(out / LOG_FILE, echo))


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
