"""Which runs the small-scale reproduction is made of, and what each is called."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from diffratio.toy import PRETRAINED

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "reproduction"
RUNS = ROOT / "out" / "reproduction"
DATASETS = ("digits", "shapes")
TARGETS = (0.2, 0.3)
SEEDS = (0, 1, 2)
LEARNED = ("l", "lt")

STEPS = 300
TRAINING = {
    "max_train_steps": STEPS,
    "train_batch_size": 32,
    "train_mode": "full",
    "learning_rate": 3e-4,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 20,
    "num_regions": 4,
    "validation_steps": 100,
    "checkpointing_steps": STEPS,
    "report_to": "none",
}
"""The same for every run: what differs is method, target, data and seed."""
SAMPLING = {"samples": 512, "seed": 0, "steps": 20, "guidance": 2.0}


@cache
def setup(dataset: str) -> str:
    """A digest of what decides a result besides method, target and seed: starting weights and settings."""
    digest = hashlib.sha256(json.dumps([TRAINING, SAMPLING], sort_keys=True).encode())
    digest.update((PRETRAINED[dataset] / "fp32.sha256").read_bytes())
    return digest.hexdigest()[:12]


def is_done(path: Path, dataset: str) -> bool:
    """Whether a file of results is there and stands for today's setup."""
    return path.is_file() and json.loads(path.read_text()).get("setup") == setup(dataset)


@dataclass(frozen=True)
class Run:
    dataset: str
    method: str
    target: float
    seed: int

    @property
    def name(self) -> str:
        target = "" if self.method == "dense" else f"-{round(100 * self.target)}"
        return f"{self.dataset}-{self.method}{target}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return RUNS / setup(self.dataset) / self.name

    @property
    def result(self) -> Path:
        return RESULTS / f"{self.name}.json"


def all_runs() -> list[Run]:
    """Every run, seeds first, so that a stopped reproduction has whole comparisons."""
    runs = []
    for seed, dataset in product(SEEDS, DATASETS):
        runs.append(Run(dataset, "dense", 0.0, seed))
        runs += [Run(dataset, method, target, seed) for target in TARGETS for method in ("mod", *LEARNED)]
    return runs
