"""The suites that `diffratio bench` measures, from one operator to a sampling loop."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from ..harness.options import Options
from ..harness.subject import Subject

SUITES = {
    "peak": "a large product, a copy and an empty launch: what the machine gives",
    "operator": "every operator and product of a block, beside plain PyTorch and libraries",
    "block": "one block, beside the dense one, its compiled forms, the authors' code and merged tokens",
    "family": "one block of every family of diffusers, beside the dense one",
    "training": "forward and backward of one block with two bins",
    "model": "a whole transformer",
    "inpaint": "a step of lazy inpainting, by the size of its hole",
    "sampling": "a denoising loop with guidance, with cached steps and without",
}


def subjects(suite: str, options: Options) -> Iterator[Subject]:
    """What a suite measures, on which inputs, beside whom.

    Args:
        suite: a key of `SUITES`.
        options: the sizes to measure at.

    Raises:
        ModuleNotFoundError: the suites "family", "model", "inpaint" and "sampling" find no diffusers.
    """
    return import_module(f".{suite}", __name__).subjects(options)
