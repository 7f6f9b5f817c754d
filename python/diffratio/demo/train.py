"""The script that made ``assets/``: ``python -m diffratio.demo.train dense`` and then ``... lt``.

One thread of a CPU is enough (about 25 and 10 minutes). The same seed on the same machine and versions
gives the same weights; the log next to them says which they were.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from ..data.digits import NULL_CLASS, augment, load_split, make_class_tokens
from ..evaluation.target import load_target
from ..models import noise_schedule
from ..models.pretrain import LOG_FILE, Draw, Log, Recipe, train, v_mse
from ..train.run_log import LOG, RATIOS, RUN, read_lines
from .model import ASSETS, build_model, save_model

LEARNED = {
    "pretrained_model_name_or_path": "digits",
    "method": "lt",
    "target_compression": 0.3,
    "train_mode": "full",
    "learning_rate": 3e-4,
    "lr_scheduler": "cosine",
    "train_batch_size": 48,
    "use_ema": True,
    "checkpointing_steps": 200,
    "checkpoints_total_limit": 1,
    "report_to": "none",
}
"""Arguments of `diffratio train`, as for every run of the learned model."""

app = typer.Typer(help="Train the demo's digit models.", add_completion=False)


@torch.no_grad()
def validate(model: PixArtTransformer2DModel, class_tokens: Tensor) -> float:
    """Return the v-MSE on the held-out digits, at noise and timesteps that never change."""
    images, labels = load_split("held_out")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    timesteps = torch.linspace(0, 999, len(images)).long()[torch.randperm(len(images), generator=generator)]
    images, labels, noise, timesteps = (x.to(class_tokens.device) for x in (images, labels, noise, timesteps))
    return v_mse(model, noise_schedule(), images, class_tokens[labels], timesteps, noise).item()


def draw_digits(class_tokens: Tensor, drop_text: float) -> Draw:
    """Return a function that draws augmented training digits, some of them without a class."""
    images, labels = load_split("train")

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(images), (n,), generator=generator)
        clean = augment(images[rows], generator)
        dropped = torch.rand(n, generator=generator) < drop_text
        return clean, class_tokens[torch.where(dropped, NULL_CLASS, labels[rows])]

    return draw


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
    recipe, log = Recipe(seed, steps, learning_rate=1e-3), Log(out / LOG_FILE, json_lines)
    draw = draw_digits(class_tokens, recipe.drop_text)
    train("dense", model, draw, lambda: validate(model, class_tokens), recipe, log)
    save_model(model, class_tokens, out)


@app.command()
def lt(
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 800,
    run: Annotated[Path, typer.Option(help="Folder of the whole run; one that is there goes on.")] = Path(
        "out/demo-lt30"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the weights, adapter and log.")] = ASSETS / "lt30",
) -> None:
    """Fine-tune the dense model with `diffratio train` until it knows how much each block keeps when."""
    # Not at the top: running the demo needs neither accelerate nor peft.
    from ..train import TrainArguments
    from ..train import train as fine_tune

    resume = "latest" if (run / RUN).exists() else None
    own = {"output_dir": str(run), "seed": seed, "max_train_steps": steps, "resume_from_checkpoint": resume}
    fine_tune(TrainArguments(**own, **LEARNED))
    ship(run, out)


def ship(run: Path, out: Path) -> None:
    """Copy the result of ``run`` to ``out``, with a log that ends with the loss of ``validate``."""
    out.mkdir(parents=True, exist_ok=True)
    for file in (run / "final").iterdir():
        if file.is_file():  # the package knows the schedule of its models
            shutil.copyfile(file, out / file.name)
    config = json.loads((out / "config.json").read_text())
    config.pop("_name_or_path", None)  # the folder that the dense model was loaded from
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    info = json.loads((run / RUN).read_text())
    loss = validate(load_target(out).model, make_class_tokens(seed=0))
    log = Log(out / LOG_FILE, echo=False)
    log(**{name: info[name] for name in ("arguments", "parameters", "versions")})
    for entry in thinned(read_lines(run / LOG), read_lines(run / RATIOS)):
        log(**entry)
    log(finished=True, seconds=round(info["seconds"], 1), v_mse=round(loss, 5))


def thinned(log: list[dict], ratios: list[dict], every: int = 20) -> Iterator[dict]:
    """Yield all validations of a run, and one line for ``every`` steps: the mean loss and the last ratios."""
    table = {entry["step"]: entry["ratios"] for entry in ratios}
    last = max(table)
    losses = []
    for entry in log:
        if "validation_loss" in entry:
            yield entry
            continue
        losses.append(entry["loss"])
        step = entry["step"]
        if step % every == 0 or step == last:
            yield {
                "step": step,
                "loss": round(sum(losses) / len(losses), 5),
                "mean_ratio": round(entry["mean_ratio"], 5),
                "target": round(entry["target"], 5),
                "ratios": [[round(ratio, 4) for ratio in row] for row in table[step]],
            }
            losses.clear()


if __name__ == "__main__":
    app()
