"""One row: a system on a model in turns with the dense model, its memory, and what its blocks take."""

from __future__ import annotations

import statistics

import torch
from torch import nn

from diffratio import disable_diffratio, enable_diffratio
from diffratio.evaluation.latency import rotating_times
from diffratio.evaluation.layers import layer_costs
from diffratio.evaluation.memory import peak_bytes
from diffratio_kernels._backends import NotAvailable

from .steps import Step, Subjects, Work

LAYER_ROUNDS = 1
"""Of times of single blocks, each of two forwards; a mean over all blocks is shown."""


@torch.inference_mode()
def measure(step: Step, subjects: Subjects, work: Work, rounds: int, progress: bool = True) -> dict:
    """A row: seconds and peak_bytes of one forward (the mean over regions; the most), of_dense in turns,
    layer_seconds and layer_peak_bytes, means over the blocks. What cannot run has `refused`, the reason, and
    `failed` where a kernel of ours could have run."""
    shape, batch = step.shape(work.kind), 2 * step.images
    row = {
        "step": step.name, "system": work.name, "kind": work.kind, "method": work.system.method,
        "compression": work.system.compression, "dtype": step.dtype, "images": step.images, "samples": batch,
        "tokens": shape.tokens, "layers": shape.layers, "width": shape.width,
    }  # fmt: skip
    try:
        return row | _figures(subjects, work, rounds, progress)
    except Exception as error:  # whatever it is, the other systems are measured
        reason = str(error).strip().splitlines() or [type(error).__name__]
        memory = isinstance(error, torch.OutOfMemoryError)
        failed = work.system.ours and not memory and not isinstance(error, NotAvailable)
        return (
            row
            | {"refused": f"out of memory: {reason[0]}" if memory else reason[0]}
            | ({"failed": True} if failed else {})
        )
    finally:
        if subjects.device == "cuda":
            torch.cuda.empty_cache()


def _figures(subjects: Subjects, work: Work, rounds: int, progress: bool) -> dict:
    model, device, system = subjects.model(work.kind), subjects.device, work.system
    system.put(model)
    try:
        calls = subjects.calls(work.kind, system.regions(len(model.transformer_blocks)))
        return _of(model, calls, device, system.name, rounds, progress)
    finally:
        system.take(model)


def _of(model: nn.Module, calls: list[dict], device: str, name: str, rounds: int, progress: bool) -> dict:
    def forward() -> None:
        for one in calls:
            model(**one, return_dict=False)

    def own() -> None:
        enable_diffratio(model)

    def dense() -> None:
        disable_diffratio(model)

    ways = {"dense": dense} | ({} if name == "dense" else {name: own})
    ways[name]()
    forward()  # compiles, and finds what does not fit before anything is timed
    passes = dict.fromkeys(ways, forward)
    times = rotating_times(passes, len(calls), rounds, device, progress, prepare=ways, description=name)
    ways[name]()
    peak = peak_bytes(forward, device)
    layers = layer_costs(model, forward, {name: ways[name]}, LAYER_ROUNDS, progress)[name]
    return {
        "seconds": times[name].median,
        "of_dense": times[name].ratio(times["dense"]),
        "spread": times[name].spread,
        "rounds": rounds,
        "regions": len(calls),
        "peak_bytes": peak,
        "layer_seconds": statistics.fmean(layers["milliseconds"]) / 1e3,
        "layer_peak_bytes": statistics.fmean(layers["peak_megabytes"]) * 1e6,
    }
