"""The demo: sample the dense and the sparse digit model, judge both, measure both, draw the picture."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .. import load_diffratio, record_routing
from .digits import SIZE
from .measure import costs
from .model import ASSETS, load_model
from .picture import draw
from .sample import balanced_labels, sample
from .score import accuracy, held_out_accuracy
from .train import validate

COMPRESSION = 0.3
PICTURE_FILE = "demo.png"
REPORT_FILE = "demo.json"

_MAP_COLUMNS = 8


def run_demo(
    out_dir: Path | str,
    *,
    samples_per_class: int = 20,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 2.0,
    assets: Path = ASSETS,
    progress: bool = True,
) -> dict[str, Any]:
    """Sample ``10 * samples_per_class`` digits with each model and write ``demo.png`` and ``demo.json``.

    Args:
        out_dir: where the two files go; made if need be.
        samples_per_class: samples of each digit and model.
        seed: of the starting noise, the same for both models.
        steps: steps of DPM-Solver++.
        guidance: weight of classifier-free guidance; 1 is none.
        assets: folder with the models ``dense`` and ``mod30``.
        progress: show progress bars on standard error.

    Returns:
        The report, as in ``demo.json``: the settings; ``real_accuracy``, the classifier's on held-out real
        digits; ``dense`` and ``sparse`` with the classifier's accuracy on the samples and the loss on
        held-out digits; ``costs``, one entry per thing measured, with GFLOP, milliseconds and peak MB of a
        dense and a sparse call; ``seconds``.

    Raises:
        ValueError: ``samples_per_class`` below 1.
    """
    if samples_per_class < 1:
        raise ValueError(f"samples_per_class must be at least 1, got {samples_per_class}")
    start = time.perf_counter()
    out_dir = Path(out_dir)
    labels = balanced_labels(samples_per_class)
    settings = {"seed": seed, "steps": steps, "guidance": guidance}

    dense_model, dense_tokens = load_model(assets / "dense")
    sparse_model, sparse_tokens = load_model(assets / "mod30")
    load_diffratio(sparse_model, assets / "mod30")
    options = {**settings, "progress": progress}
    dense = sample(dense_model, dense_tokens, labels, description="dense samples", **options)
    with record_routing(sparse_model) as log:
        sparse = sample(sparse_model, sparse_tokens, labels, description="sparse samples", **options)
    kept, timesteps = kept_maps(log, len(labels))
    chosen = torch.linspace(0, len(timesteps) - 1, min(_MAP_COLUMNS, len(timesteps))).round().long()

    report = {
        "samples": len(labels),
        **settings,
        "compression": COMPRESSION,
        "real_accuracy": held_out_accuracy(),
        "dense": _quality(dense_model, dense_tokens, dense, labels),
        "sparse": _quality(sparse_model, sparse_tokens, sparse, labels),
        "costs": costs(sparse_model, COMPRESSION, progress),
        "picture": str(out_dir / PICTURE_FILE),
    }
    draw(
        out_dir / PICTURE_FILE,
        dense,
        sparse,
        kept[chosen],
        [timesteps[i] for i in chosen],
        titles=_titles(report),
        caption=table_rows(report),
    )
    report["seconds"] = time.perf_counter() - start
    (out_dir / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    return report


def kept_maps(log: Sequence[Any], samples: int) -> tuple[Tensor, list[int]]:
    """Return ``(kept, timesteps)`` from what ``record_routing`` saw during one sampling run.

    ``kept`` is float32 ``[len(timesteps), layers, 8, 8]``: the share of the samples that kept each token, in
    the half of the batch that knows its class (the last ``samples`` of it). Timesteps come in the order of
    sampling, from noise to image.
    """
    timesteps = list(dict.fromkeys(int(entry.timestep) for entry in log))
    layers = 1 + max(entry.layer for entry in log)
    kept = torch.zeros(len(timesteps), layers, SIZE, SIZE)
    for entry in log:
        batch, tokens = entry.shape
        mask = torch.zeros(batch * tokens)
        mask[entry.index] = 1
        share = mask.view(batch, SIZE, SIZE)[-samples:].mean(0)
        kept[timesteps.index(int(entry.timestep)), entry.layer] = share
    return kept, timesteps


def table_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the report as rows of (what, dense, sparse, sparse / dense), the header first."""
    pair = report["dense"], report["sparse"]
    rows = [("", "dense", "sparse", "sparse / dense")]
    accuracies = [f"{100 * result['accuracy']:.1f} %" for result in pair]
    rows.append((f"samples recognised (real digits: {100 * report['real_accuracy']:.1f} %)", *accuracies, ""))
    losses = [result["held_out_loss"] for result in pair]
    rows.append(("velocity loss on held-out real digits", *(f"{x:.4f}" for x in losses), _percent(*losses)))
    for cost in report["costs"]:
        for key, what, unit in (
            ("gflop", "computation", "GFLOP"),
            ("milliseconds", "latency", "ms"),
            ("peak_megabytes", "peak memory", "MB"),
        ):
            dense, sparse = cost["dense"][key], cost["sparse"][key]
            values = (f"{value:.3g} {unit}" for value in (dense, sparse))
            rows.append((f"{cost['what']}: {what}", *values, _percent(dense, sparse)))
    return rows


def print_report(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    console = Console()
    header, *rows = table_rows(report)
    table = Table(*header, title=f"{report['samples']} digits, {report['steps']} steps of DPM-Solver++")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"{report['picture']} written; {report['seconds']:.0f} s in all")


def _quality(model: Any, class_tokens: Tensor, images: Tensor, labels: Tensor) -> dict[str, float]:
    return {"accuracy": accuracy(images, labels), "held_out_loss": validate(model, class_tokens)}


def _percent(dense: float, sparse: float) -> str:
    return f"{100 * sparse / dense:.0f} %"


def _titles(report: dict[str, Any]) -> tuple[str, str]:
    recognised = [f"{100 * report[name]['accuracy']:.1f} % recognised" for name in ("dense", "sparse")]
    return (
        f"Dense: every token in every block\n{recognised[0]}",
        f"Sparse: {round(100 * (1 - COMPRESSION))} % of the tokens in every block\n{recognised[1]}",
    )
