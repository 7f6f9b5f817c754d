"""The demo: sample the dense and the sparse digit model, judge both, measure both, draw the picture."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import record_routing
from ..adapter_file import RATIOS, WEIGHTS_NAME, read_weights
from ..data.digits import SIZE
from ..evaluation.target import Target, load_target
from ..plots.style import save
from .measure import costs
from .model import ASSETS, load_model
from .picture import compose
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

    Runs on the GPU if there is one, else on the CPU.

    Args:
        out_dir: where the two files go; made if need be.
        samples_per_class: samples of each digit and model.
        seed: of the starting noise, the same for both models.
        steps: steps of DPM-Solver++.
        guidance: weight of classifier-free guidance; 1 is none.
        assets: folder with the models ``dense`` and ``lt30``.
        progress: show progress bars on standard error.

    Returns:
        The report, as in ``demo.json``: the settings; ``real_accuracy``, the classifier's on held-out real
        digits; ``dense`` and ``sparse`` with the classifier's accuracy on the samples and the loss on
        held-out digits; ``kept``, the ``ratios`` [L][R] that the sparse model has learned (region 0 is the
        cleanest) and the ``tenths`` [L][R] that it keeps, with the means of both; ``costs``, one entry per
        thing measured (see ``measure.costs``); ``seconds``.

    Raises:
        ValueError: ``samples_per_class`` below 1.
    """
    if samples_per_class < 1:
        raise ValueError(f"samples_per_class must be at least 1, got {samples_per_class}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    out_dir = Path(out_dir)
    labels = balanced_labels(samples_per_class)
    settings = {"seed": seed, "steps": steps, "guidance": guidance}

    dense_model, class_tokens = load_model(assets / "dense", device)
    target = load_target(assets / "lt30", device=device)
    sparse_model = target.model
    options = {**settings, "progress": progress}
    dense = sample(dense_model, class_tokens, labels, description="dense samples", **options)
    with record_routing(sparse_model) as log:
        sparse = sample(sparse_model, class_tokens, labels, description="sparse samples", **options)
    kept, timesteps = kept_maps(log, len(labels))
    every = math.ceil(len(timesteps) / _MAP_COLUMNS)

    report = {
        "samples": len(labels),
        **settings,
        "compression": COMPRESSION,
        "device": device,
        "real_accuracy": held_out_accuracy(),
        "dense": _quality(dense_model, class_tokens, dense, labels),
        "sparse": _quality(sparse_model, class_tokens, sparse, labels),
        "kept": kept_ratios(target, assets / "lt30"),
        "costs": costs(sparse_model, COMPRESSION, progress),
        "picture": str(out_dir / PICTURE_FILE),
    }
    save(compose(dense, sparse, kept[::every], timesteps[::every], report), out_dir / PICTURE_FILE)
    report["seconds"] = time.perf_counter() - start
    (out_dir / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    return report


def kept_ratios(target: Target, folder: Path) -> dict[str, Any]:
    """Return the ``ratios`` [L][R] in the adapter in ``folder`` and the kept ``tenths`` [L][R] of the model,
    with ``mean_ratio`` and ``mean_of_bins``."""
    ratios = read_weights(folder / WEIGHTS_NAME)[RATIOS]
    return {
        "ratios": ratios.tolist(),
        "mean_ratio": ratios.mean().item(),
        "tenths": target.kept_tenths,
        "mean_of_bins": target.mean_kept,
    }


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
        share = entry.kept()[-samples:].float().mean(0).cpu()
        kept[timesteps.index(int(entry.timestep)), entry.layer] = share.view(SIZE, SIZE)
    return kept, timesteps


def _quality(model: Any, class_tokens: Tensor, images: Tensor, labels: Tensor) -> dict[str, float]:
    return {"accuracy": accuracy(images, labels), "v_mse": validate(model, class_tokens)}
