"""Level -> its subjects: what is measured, on which inputs, beside whom."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from .options import Options
from .subject import Subject

LEVELS = {
    "peak": "a large product, a copy and an empty launch: what the machine gives",
    "operator": "every operator and product of a block, beside plain PyTorch and libraries",
    "block": "one block, beside the dense one, its compiled forms, the authors' code and merged tokens",
    "training": "forward and backward of one block with two bins",
    "model": "a whole transformer",
    "sampling": "a denoising loop with guidance, with cached steps and without",
}


def subjects(level: str, options: Options) -> Iterator[Subject]:
    """Raises ModuleNotFoundError where the levels "model" and "sampling" find no diffusers."""
    return import_module(f".levels.{level}", __package__).subjects(options)
