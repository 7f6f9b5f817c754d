"""Which runs the small-scale reproduction is made of, and what each is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from diffratio.toy import PRETRAINED

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "reproduction"
RUNS = ROOT / "out" / "reproduction"
DATASETS = ("digits", "shapes")
TARGETS = (0.2, 0.3)
SEEDS = (0, 1, 2)

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
"""The same for every run: what differs is the system, target, data and seed."""
SAMPLING = {"samples": 512, "seed": 0, "steps": 20, "guidance": 2.0}


@dataclass(frozen=True)
class System:
    """What is compared: its name in the tables, its method, what its training is given beside `TRAINING`.

    `targets` are compressions of its own, by the target in whose table it stands.
    """

    label: str
    method: str
    extra: dict[str, Any] = field(default_factory=dict)
    targets: dict[float, float] = field(default_factory=dict)


GROWING = {"ramp": 0.4}
"""Compression grows as that of DiffRatio-L and -LT does."""
PAPER = {"ratio_loss_weight": "0.3", "ratio_mode": "faithful", "router_start": "faithful"}
"""The penalty with the paper's lambda, its clamp and bins, its start of the routers."""
SYSTEMS = {
    "dense": System("dense, the same steps", "dense"),
    "mod": System("uniform MoD", "mod"),
    "mod-floor": System("uniform MoD, the authors' floor", "mod", {"rounding": "floor"}),
    "mod-ramp": System("uniform MoD, growing", "mod", GROWING),
    "mod-clean": System("growing MoD, cleanest region dense", "mod", GROWING | {"dense_regions": 1}),
    "l": System("DiffRatio-L", "l"),
    "lt": System("DiffRatio-LT", "lt"),
    "lt-matched": System("DiffRatio-LT at MoD's FLOPs", "lt", targets={0.2: 0.194, 0.3: 0.307}),
    "paper": System("DiffRatio-LT, the paper's recipe", "lt", PAPER),
}
"""In the order of the tables. Uniform MoD rounds its tokens up: hence the targets of lt-matched."""
TRAINING_FREE = {
    "tome-mlp": System("ToMe in the MLP, not trained", "tome:mlp"),
    "tome-attn": System("ToMe in attention, not trained", "tome:attn"),
    "tome-all": System("ToMe in both, not trained", "tome:all", targets={0.2: 0.21}),
    "atedm": System("AT-EDM, not trained", "atedm"),
}
"""Baselines of `diffratio eval` on the model before any fine-tuning; one token more makes 0.21 of 0.2."""
LEARNED = ("l", "lt")
"""Those whose ratios are held to the target."""


@cache
def setup(dataset: str, method: str = "dense") -> str:
    """A digest of what decides a result besides method, target and seed: starting weights and settings."""
    system = (SYSTEMS | TRAINING_FREE)[method]
    own = system.extra | ({"targets": system.targets} if system.targets else {})
    return digest([TRAINING | own, SAMPLING], dataset)


def digest(settings: list, model: str) -> str:
    """Of settings, and of the weights of a model of the package."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    found.update((PRETRAINED[model] / "fp32.sha256").read_bytes())
    return found.hexdigest()[:12]


def is_done(path: Path, setup: str) -> bool:
    """Whether a file of results is there and stands for today's setup."""
    return path.is_file() and json.loads(path.read_text()).get("setup") == setup


@dataclass(frozen=True)
class Run:
    dataset: str
    method: str
    """A key of `SYSTEMS` or `TRAINING_FREE`."""
    target: float
    seed: int

    @property
    def name(self) -> str:
        target = "" if self.method == "dense" else f"-{round(100 * self.target)}"
        return f"{self.dataset}-{self.method}{target}-seed{self.seed}"

    @property
    def setup(self) -> str:
        return setup(self.dataset, self.method)

    @property
    def done(self) -> bool:
        return is_done(self.result, self.setup)

    @property
    def folder(self) -> Path:
        return RUNS / self.setup / self.name

    @property
    def compression(self) -> float:
        """What is asked for, near the target in whose table the run stands."""
        system = (SYSTEMS | TRAINING_FREE)[self.method]
        return system.targets.get(self.target, self.target)

    @property
    def training(self) -> dict[str, Any]:
        """The arguments of `diffratio train`, without its folder."""
        system = SYSTEMS[self.method]
        return TRAINING | system.extra | {
            "pretrained_model_name_or_path": self.dataset,
            "method": system.method,
            "target_compression": self.compression,
            "seed": self.seed,
        }  # fmt: skip

    @property
    def base(self) -> str:
        """What training begins with: a model of the package, or a folder."""
        return self.dataset

    @property
    def result(self) -> Path:
        return RESULTS / f"{self.name}.json"


def all_runs(seeds: Sequence[int] = SEEDS) -> list[Run]:
    """Every run, seeds first, so that a stopped reproduction has whole comparisons. What is not trained has
    one seed."""
    trained = [method for method in SYSTEMS if method != "dense"]
    runs = []
    for seed, dataset in product(seeds, DATASETS):
        runs.append(Run(dataset, "dense", 0.0, seed))
        runs += [Run(dataset, method, target, seed) for target, method in product(TARGETS, trained)]
    free = product(DATASETS, TARGETS, TRAINING_FREE)
    return runs + [Run(dataset, method, target, 0) for dataset, target, method in free]
