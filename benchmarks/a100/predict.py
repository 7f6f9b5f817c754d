"""What a datasheet says of a row before it is measured, and how long measuring it takes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import fmean

from diffratio.evaluation.flops import (
    TransformerShape,
    block_flops,
    block_steps,
    kept_table,
    transformer_flops,
)
from diffratio.plan import DEVICES, Device

from .measure import LAYER_ROUNDS
from .steps import Step, Work

FP32 = {"a100": 19.5, "h100": 66.9, "h200": 66.9}
"""Datasheet TFLOP/s without TF32, as the authors' timings imply: 17.7 of these 19.5 at 100 steps an image."""
_BESIDE = ("matching", "ranking")
"""Products of ToMe and AT-EDM that are no step of a block."""


def device_named(name: str, dtype: str) -> Device:
    """A key of `DEVICES` in one dtype: fp32 at 80 % of its peak too, attention at 65 % of that."""
    half = DEVICES[name]
    if dtype == "bf16":
        return half
    rate = 0.8e12 * FP32[name]
    source = f"from its datasheet, 80 % of {FP32[name]:g} TFLOP/s in fp32"
    return replace(half, peak_flops=rate, attention_flops=0.65 * rate, itemsize=4, source=source)


def predicted_seconds(step: Step, work: Work, device: Device) -> float:
    """Of all blocks in one forward, the mean over regions."""
    shape, (kept, method) = step.shape(work.kind), work.system.kept(step.shape(work.kind))
    if kept is None:
        return shape.layers * _block(shape, None, "dense", 2 * step.images, device)
    table = kept_table(kept, shape, method)
    return sum(fmean(_block(shape, n, method, 2 * step.images, device) for n in row) for row in table)


@cache
def _block(shape: TransformerShape, kept: int | None, method: str, batch: int, device: Device) -> float:
    steps = block_steps(shape, kept, method=method)
    seconds = sum(device.seconds(one.operator, shape, one.rows, batch)[0] for one in steps)
    beside = block_flops(shape, kept, method=method)
    return seconds + batch * sum(beside[name] for name in _BESIDE) / device.peak_flops


def flops(step: Step, work: Work) -> float:
    """True FLOPs of one forward."""
    kept, method = work.system.kept(step.shape(work.kind))
    return transformer_flops(step.shape(work.kind), kept, batch=2 * step.images, method=method).total


def forwards(rounds: int) -> tuple[int, int]:
    """Of a system for one row, and of the dense model beside it: warm up, heat, rounds, memory, blocks."""
    return 4 + rounds + 2 * LAYER_ROUNDS, 1 + rounds


def measuring_seconds(step: Step, work: Work, device: Device, rounds: int) -> float:
    """How long a row takes."""
    own, dense = forwards(rounds)
    regions = work.system.regions(step.sizes.layers)
    whole = predicted_seconds(step, replace(work, system=step.works[0].system), device)
    beside = 0 if work.system.name == "dense" else dense
    return regions * (own * predicted_seconds(step, work, device) + beside * whole)
