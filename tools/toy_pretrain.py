"""Pretraining of the small models. These commands made what tools/toy_weights.py stored in `assets`:

    python -m tools.toy_pretrain digits OUT --steps 4000 --batch 64
    python -m tools.toy_pretrain shapes FIRST --steps 3200
    python -m tools.toy_pretrain shapes SECOND --from FIRST --steps 2200 --seed 1
    python -m tools.toy_pretrain shapes OUT --from SECOND --steps 6000 --seed 2

One thread of a CPU is enough (25 minutes for digits, an hour for shapes). The same seed on the same machine
and versions gives the same weights; the log next to them says which they were.
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
from torch import Tensor, nn

from diffratio.data import BUILT_IN, CaptionedDataset, load_dataset
from diffratio.data.digits import Digits, load_split, shift_and_jitter
from diffratio.diffusion import noise_schedule
from diffratio.diffusion.prediction import prediction_error
from diffratio.progress import progress_bar
from diffratio.toy import load_pixart

LOG_FILE = "train_log.jsonl"

LAYERS = {"digits": 5, "shapes": 6}
HEADS, HEAD_DIM = 4, 24


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


def small_pixart(
    dataset: CaptionedDataset, seed: int, *, layers: int = 6, heads: int = HEADS, head_dim: int = HEAD_DIM
) -> PixArtTransformer2DModel:
    """Return a fresh model for images and captions of ``dataset``, initialised from ``seed`` as PixArt does.

    diffusers' default initialisation learns little in a short training; PixArt's own is Xavier for linear
    layers, small normal embeddings, and zeros where the text and the prediction leave the network.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PixArtTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            in_channels=dataset.channels,
            out_channels=dataset.channels,
            num_layers=layers,
            cross_attention_dim=heads * head_dim,
            sample_size=dataset.size,
            patch_size=dataset.patch_size,
            use_additional_conditions=False,
            caption_channels=dataset.text_width,
        )
        _pixart_init(model)
    return model


def _pixart_init(model: PixArtTransformer2DModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patch = model.pos_embed.proj
    nn.init.xavier_uniform_(patch.weight.view(patch.out_channels, -1))
    nn.init.zeros_(patch.bias)
    for embedding in (model.adaln_single, model.caption_projection):
        for module in embedding.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)


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


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """``shift_and_jitter`` with numbers from ``generator``."""
    chance = torch.rand(images.shape[0], generator=generator)
    return shift_and_jitter(images, chance, torch.rand(images.shape, generator=generator))


def draw_digits(digits: Digits, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``n`` random training images ``[n, 1, 8, 8]``, augmented anew, and their text ``[n, 4, 32]``."""
    images, labels = load_split("train")
    rows = torch.randint(len(images), (n,), generator=generator)
    return augment(images[rows], generator), digits.embed(labels[rows, None])


def draw_items(dataset: CaptionedDataset, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``n`` random images ``[n, C, H, W]`` of ``dataset`` and their text ``[n, M, E]``."""
    batch = dataset.batch(torch.randint(len(dataset), (n,), generator=generator))
    return batch["pixel_values"], batch["tokens"]


def draw(
    dataset: CaptionedDataset, n: int, drop_text: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return ``n`` random images ``[n, C, H, W]`` and their text ``[n, M, E]``, of some the null text."""
    images, tokens = (draw_digits if dataset.name == "digits" else draw_items)(dataset, n, generator)
    dropped = torch.rand(n, 1, 1, generator=generator) < drop_text
    return images, torch.where(dropped, dataset.null_tokens, tokens)


def fit(
    model: PixArtTransformer2DModel, dataset: CaptionedDataset, recipe: Recipe, log: Callable[..., None]
) -> None:
    """Train ``model`` in place on ``dataset``; at the end it holds the moving average of its weights.

    ``log`` is called with what becomes a line of the log, before the first step and on the way.
    """
    held_out = load_dataset(dataset.name, split="held_out")
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
    log(step=0, v_mse=round(prediction_error(model.eval(), held_out).overall, 5))
    model.train()
    losses: list[float] = []
    for step in progress_bar(range(1, recipe.steps + 1), desc="training", unit="step"):
        clean, tokens = draw(dataset, recipe.batch, recipe.drop_text, generator)
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
                entry["v_mse"] = round(prediction_error(model.eval(), held_out).overall, 5)
                ema.restore(parameters)
                model.train()
            log(**entry)
    ema.copy_to(parameters)
    model.eval()


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
    dataset = load_dataset(name)
    model = small_pixart(dataset, seed, layers=LAYERS[name]) if start is None else load_pixart(start)
    recipe = Recipe(seed, steps, learning_rate=1e-3, batch=batch)
    log = Log(out / LOG_FILE, as_json)
    parameters = sum(p.numel() for p in model.parameters())
    log(model=name, parameters=parameters, recipe=asdict(recipe), versions=versions())
    began = time.perf_counter()
    fit(model, dataset, recipe, log)
    seconds = time.perf_counter() - began
    log(finished=True, seconds=round(seconds, 1), threads=torch.get_num_threads())
    model.register_to_config(_name_or_path="")  # diffusers would write the folder that it was loaded from
    model.save_pretrained(out, safe_serialization=True)
    noise_schedule().save_pretrained(out / "scheduler")


if __name__ == "__main__":
    typer.run(main)
