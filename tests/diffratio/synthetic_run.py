"""A run directory as the trainer leaves it, of a tiny routed model for digits that was never trained."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.data import load_dataset
from diffratio.routing.find import routed_blocks
from diffratio.train.arguments import TrainArguments
from diffratio.train.checkpoints import MANIFEST
from diffratio.train.model import ADAPTER, write_model
from tools.toy_pretrain import small_pixart

LAYERS, REGIONS, STEPS = 2, 2, (1, 2, 3)
# Compression [L][R] of the model of each checkpoint.
TABLES = {1: [[0.0, 0.1], [0.0, 0.1]], 2: [[0.1, 0.2], [0.3, 0.6]], 3: [[0.2, 0.4], [0.3, 0.7]]}


def make_model(table=None):
    model = small_pixart(load_dataset("digits"), 0, layers=LAYERS, heads=1)
    with torch.no_grad():
        model.proj_out.weight.normal_(std=0.1)
    if table is not None:
        overrides = dict(enumerate(table))
        apply_diffratio(model, DiffRatioConfig(0.3, overrides=overrides, num_regions=REGIONS))
        for layer, block in enumerate(routed_blocks(model)):
            block.diffratio.router_weight.data.normal_(generator=torch.Generator().manual_seed(layer))
    return model


def make_run(folder: Path, method: str = "lt") -> Path:
    """Write the run: ratios fall from 1.0 to those of `TABLES[3]` at steps 1, 2 and 3."""
    arguments = TrainArguments(
        pretrained_model_name_or_path="digits",
        output_dir=str(folder),
        train_mode="full",
        method=method,
        target_compression=0.4,
        max_train_steps=3,
        num_regions=REGIONS,
    )
    folder.mkdir(parents=True)
    run = {"arguments": asdict(arguments), "dataset": "digits", "base_model": "digits", "finished": "now"}
    (folder / "run.json").write_text(json.dumps(run))
    learned = method in ("l", "lt")
    kept = [{"step": step, "ratios": [[1 - c for c in row] for row in TABLES[step]]} for step in STEPS]
    lines = [json.dumps(line) + "\n" for line in kept] if learned else []
    (folder / "ratios.jsonl").write_text("".join(lines))
    for step in STEPS if learned else ():
        checkpoint = folder / f"checkpoint-{step}"
        (checkpoint / ADAPTER).mkdir(parents=True)
        write_model(make_model(TABLES[step]), checkpoint / ADAPTER)
        (checkpoint / MANIFEST).write_text(json.dumps({"step": step, "files": {}}))
    (folder / "final").mkdir()
    write_model(make_model(None if method == "dense" else TABLES[3]), folder / "final")
    return folder
