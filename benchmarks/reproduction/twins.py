"""Which repainting runs the reproduction is made of. Of two objects alike one is hidden, and no text tells
which they are: what fits the other one has been seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.reproduction.plan import SAMPLING, SEEDS, TRAINING, Run, digest

DATASET = "twins"
BEGUN = "shapes"
"""The model of the package that every system begins with."""
TARGET = 0.3
TASK = {"task": "inpaint", "dataset_name": DATASET, "masks": "object", "num_regions": 10}
START = "start"
"""The method of the run that the others of a system begin with."""
STARTING = {
    "max_train_steps": 2000,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 50,
    "validation_steps": 500,
    "checkpointing_steps": 500,
}
"""Dense, once per system, which has to learn what is new in it: the lazy encoder, more input channels."""
SYSTEMS = {"lazy": ("dense", "mod", "l", "lt"), "image": ("dense", "lt"), "crop": ("dense", "lt")}
"""The methods of each, in the order of the table."""


@dataclass(frozen=True)
class Repaint(Run):
    """A run of a system on twins; of method "start", or a fine-tuning of that."""

    system: str = "lazy"

    @property
    def name(self) -> str:
        target = f"-{round(100 * self.target)}" if self.target else ""
        seed = "" if self.method == START else f"-seed{self.seed}"
        return f"{self.dataset}-{self.system}-{self.method}{target}{seed}"

    @property
    def start(self) -> Repaint:
        return Repaint(DATASET, START, 0.0, 0, self.system)

    @property
    def setup(self) -> str:
        own = {name: value for name, value in self.training.items() if name != "seed"}
        return digest([self.start.training, own, SAMPLING], BEGUN)

    @property
    def compression(self) -> float:
        return self.target

    @property
    def training(self) -> dict[str, Any]:
        started = self.method == START
        return TRAINING | TASK | (STARTING if started else {}) | {
            "pretrained_model_name_or_path": BEGUN if started else self.start.name,
            "system": self.system,
            "method": "dense" if started else self.method,
            "target_compression": self.target,
            "seed": self.seed,
        }  # fmt: skip

    @property
    def base(self) -> str:
        return BEGUN if self.method == START else str(self.start.folder / "final")


def all_repaints(seeds: Sequence[int] = SEEDS) -> list[Repaint]:
    """The start of every system, then every run, seeds first."""
    runs = [Repaint(DATASET, START, 0.0, 0, system) for system in SYSTEMS]
    for seed in seeds:
        for system, methods in SYSTEMS.items():
            targets = {method: 0.0 if method == "dense" else TARGET for method in methods}
            runs += [Repaint(DATASET, method, target, seed, system) for method, target in targets.items()]
    return runs
