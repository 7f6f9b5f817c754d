"""What a step of every system costs in time, beside the dense model:

    python -m benchmarks.reproduction.latency

On the shapes model, and on one as wide and long as real ones whose layers keep the same parts: those of the
committed results. No trained weights are needed: a step costs the same whichever tokens its routers choose.
`tables.py` writes what is found into docs/reproduction.md.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.machine import machine
from benchmarks.harness.options import Options
from benchmarks.reproduction.plan import RESULTS, SAMPLING, SYSTEMS, TRAINING_FREE, Run
from benchmarks.reproduction.run import write
from benchmarks.suites.model import Models
from diffratio import DiffRatioConfig
from diffratio.baselines import apply_baseline
from diffratio.diffusion import sampling_scheduler
from diffratio.evaluation.flops import TransformerShape, transformer_flops
from diffratio.evaluation.flops.baselines import baseline_kept
from diffratio.evaluation.latency import Times, rotating_times
from diffratio.routing.apply import route_blocks
from diffratio.routing.state import region
from diffratio.toy import PRETRAINED, load_pixart
from diffratio_kernels import kept_tokens

FILE = RESULTS / "latency.json"
DATASET, TARGET, SEED = "shapes", 0.2, 0
"""Of the seeds one: their FLOPs hardly differ."""
ROUNDS, SECONDS = 15, 100.0
"""Of one size; rounds end after so many seconds, not before the third."""


@dataclass(frozen=True)
class Size:
    """A PixArt of six layers, B samples of it, M text tokens of each."""

    model: Callable[[], nn.Module]
    batch: int
    text: int


SIZES = {
    "shapes": Size(partial(load_pixart, PRETRAINED[DATASET]), batch=64, text=5),
    "wide": Size(
        lambda: Models(Options(layers=6, width=768, heads=12, tokens=1024)).dense, batch=1, text=120
    ),
}


@dataclass(frozen=True)
class Step:
    """What decides the cost of one call: the tenths that each layer keeps, or a baseline; neither is dense.

    A baseline costs the same in every step: of six layers AT-EDM leaves none open.
    """

    kept: tuple[int, ...] | None = None
    rounding: str = "ceil"
    baseline: str | None = None

    @property
    def config(self) -> DiffRatioConfig:
        skipped = {layer: 1 - tenths / 10 for layer, tenths in enumerate(self.kept)}
        return DiffRatioConfig(overrides=skipped, rounding=self.rounding)

    def flops(self, shape: TransformerShape) -> float:
        kept = method = None
        if self.baseline is not None:
            kept, method = baseline_kept(self.baseline, shape)
        elif self.kept is not None:
            kept = [kept_tokens(tenths, shape.tokens, self.rounding) for tenths in self.kept]
        return transformer_flops(shape, kept, method=method).total


def systems() -> dict[str, Run]:
    """Every system of which there is a result, by its method."""
    runs = [Run(DATASET, method, TARGET, SEED) for method in (*SYSTEMS, *TRAINING_FREE) if method != "dense"]
    return {run.method: run for run in runs if run.done}


def steps_of(run: Run) -> Counter[Step]:
    """Which steps a sampler makes, whose timesteps go through the regions, and how often."""
    if run.method in TRAINING_FREE:
        return Counter([Step(baseline=f"{TRAINING_FREE[run.method].method}:{run.compression}")])
    table = json.loads(run.result.read_text())["kept_tenths"]
    rounding = SYSTEMS[run.method].extra.get("rounding", "ceil")
    scheduler = sampling_scheduler()
    scheduler.set_timesteps(SAMPLING["steps"])
    places = [region(timestep, len(table[0])) for timestep in scheduler.timesteps.tolist()]
    return Counter(Step(tuple(row[place] for row in table), rounding) for place in places)


class Calls:
    """One call of a model in the way of each step, on the same weights and inputs."""

    def __init__(self, size: Size):
        self.dense = size.model().requires_grad_(False)
        self.inputs = inputs(self.dense, size)
        self.routed = route_blocks(self._copied(), DiffRatioConfig(0.0))
        self.baselines: dict[str, nn.Module] = {}

    def _copied(self) -> nn.Module:
        shared = {id(t): t for t in (*self.dense.parameters(), *self.dense.buffers())}
        return copy.deepcopy(self.dense, shared)

    def prepare(self, step: Step) -> None:
        """What is done before the call, outside of its time."""
        if step.kept is not None:
            route_blocks(self.routed, step.config)

    def __call__(self, step: Step) -> None:
        model = self.dense if step.kept is None else self.routed
        if step.baseline is not None:
            if step.baseline not in self.baselines:
                self.baselines[step.baseline] = apply_baseline(self._copied(), step.baseline)
            model = self.baselines[step.baseline]
        model(**self.inputs, return_dict=False)


def inputs(model: nn.Module, size: Size) -> dict[str, Tensor]:
    """Random ones."""
    torch.manual_seed(0)
    config, batch = model.config, size.batch
    return {
        "hidden_states": torch.randn(batch, config.in_channels, config.sample_size, config.sample_size),
        "encoder_hidden_states": torch.randn(batch, size.text, config.caption_channels),
        "timestep": torch.full((batch,), 500),
    }


@torch.inference_mode()
def measured(name: str, found: dict[str, Run], rounds: int = ROUNDS, progress: bool = True) -> dict[str, Any]:
    """Time and FLOPs of each system's mean step over those of the dense model.

    Args:
        name: of `SIZES`.
        found: method -> its run.
        rounds: in each of which the dense model and all steps take turns.
        progress: whether a bar is shown.

    Returns:
        Plain JSON types; "systems" by method, and "all tokens", routed blocks that skip nothing.
    """
    size = SIZES[name]
    calls, dense = Calls(size), Step()
    shape = TransformerShape.from_model(calls.dense, text_tokens=size.text)
    steps = {method: steps_of(run) for method, run in found.items()}
    steps["all tokens"] = Counter([Step((10,) * shape.layers)])
    every = dict.fromkeys([dense, *(step for own in steps.values() for step in own)])
    times = rotating_times(
        {step: partial(calls, step) for step in every},
        *(1, rounds, "cpu", progress, SECONDS),
        prepare={step: partial(calls.prepare, step) for step in every},
        description=name,
    )
    flops = {step: step.flops(shape) for step in every}

    def figures(own: Counter[Step]) -> dict[str, float]:
        columns = zip(*(times[step].seconds for step in own), strict=True)
        time = Times([mean(dict(zip(own, column, strict=True)), own) for column in columns])
        return {
            "time_of_dense": time.ratio(times[dense]),
            "flops_of_dense": mean(flops, own) / flops[dense],
            "spread": time.spread,
        }

    own = {method: figures(counts) for method, counts in steps.items()}
    return {
        "layers": shape.layers, "width": shape.width, "tokens": shape.tokens, "text": size.text,
        "batch": size.batch, "dense_seconds": times[dense].median, "dense_spread": times[dense].spread,
        "rounds": len(times[dense].seconds), "systems": own,
    }  # fmt: skip


def mean(values: dict[Step, float], counts: Counter[Step]) -> float:
    """Over the steps of a sampling run."""
    return sum(values[step] * count for step, count in counts.items()) / counts.total()


def load() -> dict[str, Any] | None:
    """What was measured, of systems that stand for today's settings; None before the first time."""
    if not FILE.is_file():
        return None
    content, today = json.loads(FILE.read_text()), {method: run.setup for method, run in systems().items()}
    for size in content["sizes"].values():
        for method in content["setups"]:
            if content["setups"][method] != today.get(method):
                del size["systems"][method]
    return content


def main() -> None:
    torch.set_num_threads(1)
    found = systems()
    content = machine() | {"dataset": DATASET, "target": TARGET, "seed": SEED}
    content["setups"] = {method: run.setup for method, run in found.items()}
    content["sizes"] = {name: measured(name, found) for name in SIZES}
    write(FILE, content)
    for name, size in content["sizes"].items():
        for method, own in size["systems"].items():
            costs = f"time {own['time_of_dense']:.3f}, FLOPs {own['flops_of_dense']:.3f} of dense"
            print(f"{name}, {method}: {costs}")


if __name__ == "__main__":
    main()
