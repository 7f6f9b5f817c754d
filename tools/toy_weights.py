"""Makes the models in python/diffratio/toy/assets, whose weights are stored in fp16:

    python -m tools.toy_weights model OUT python/diffratio/toy/assets/shapes  # OUT: toy_pretrain.py
    python -m tools.toy_weights lt30                                          # fine-tunes the digits model
    python -m tools.toy_weights finished RUN python/diffratio/toy/assets/twins-lazy  # RUN: of diffratio train

One thread of a CPU takes 10 minutes to fine-tune. The `digits-lt30` that ships was fine-tuned from the digits
model before its weights were rounded. Evaluation's classifiers: `python -m diffratio.evaluation.classifier`.
"""

import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import load_file, save_file

from diffratio import load_diffratio
from diffratio.data import load_dataset
from diffratio.diffusion.prediction import prediction_error
from diffratio.toy import DIGITS_LT30, load_pixart
from diffratio.train import TrainArguments, train
from diffratio.train.run_log import LOG, RATIOS, RUN, read_lines
from tools.toy_pretrain import LOG_FILE, Log

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
DIGEST = "fp32.sha256"
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

app = typer.Typer(help="Store small models as they ship.", add_completion=False)


@app.command()
def model(folder: Path, out: Path) -> None:
    """Copy the files of the model in FOLDER to OUT, its weights rounded to fp16.

    Loading reads them as fp32. The file fp32.sha256 tells what was rounded: by it benchmarks/reproduction
    knows which model a result began with.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file():  # not the scheduler: the package knows the schedule of its models
            shutil.copyfile(file, out / file.name)
    config = json.loads((folder / CONFIG).read_text())
    config.pop("_name_or_path", None)  # the folder that the model was loaded from
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    exact = folder / WEIGHTS
    tensors = {name: tensor.half() for name, tensor in load_file(exact).items()}
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    (out / WEIGHTS).chmod(0o644)
    (out / DIGEST).write_text(sha256(exact.read_bytes()).hexdigest())


@app.command()
def lt30(
    seed: Annotated[int, typer.Option(help="Seed of routers, batches and noise.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 800,
    run: Annotated[Path, typer.Option(help="Folder of the whole run; one that is there goes on.")] = Path(
        "out/digits-lt30"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the weights, adapter and log.")] = DIGITS_LT30,
) -> None:
    """Fine-tune the digits model until it knows how much each block keeps when, and store it with a log."""
    resume = "latest" if (run / RUN).exists() else None
    own = {"output_dir": str(run), "seed": seed, "max_train_steps": steps, "resume_from_checkpoint": resume}
    train(TrainArguments(**own, **LEARNED))
    model(run / "final", out)
    error = prediction_error(load_diffratio(load_pixart(out), out), load_dataset("digits", split="held_out"))
    write_log(run, out, v_mse=round(error.overall, 5))


@app.command()
def finished(run: Path, out: Path) -> None:
    """Copy the result of a run with learned ratios to OUT, as `model` does, with a log."""
    model(run / "final", out)
    write_log(run, out)


def write_log(run: Path, out: Path, **figures: float) -> None:
    """Write to ``out`` how a run went, and ``figures`` of its end; folders that it knew are left out.

    A run that began with the result of another one has that one's name, and its steps as ``steps_before``.
    """
    info = json.loads((run / RUN).read_text())
    arguments = info["arguments"]
    del arguments["output_dir"]
    known, began = {}, Path(arguments["pretrained_model_name_or_path"]).parent
    if (began / RUN).is_file():
        arguments["pretrained_model_name_or_path"] = began.name
        known["steps_before"] = json.loads((began / RUN).read_text())["step"]
    log = Log(out / LOG_FILE, echo=False)
    log(**{name: info[name] for name in ("arguments", "parameters", "versions")}, **known)
    for entry in thinned(read_lines(run / LOG), read_lines(run / RATIOS)):
        log(**entry)
    log(finished=True, seconds=round(info["seconds"], 1), **figures)


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
