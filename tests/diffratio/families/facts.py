"""What the tests' cases show of every block class, for docs/supported-models.md.

python -m tests.diffratio.families.facts --write     # facts.json beside this file
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from diffratio.routing import forward
from diffratio_kernels.blocks.stream import Call, SelfAttention
from diffratio_kernels.types import Linear
from tools.pages import print_or_write

from .cases import BLOCKS, MODELS
from .cases.case import Case
from .refusals import refusals
from .test_blocks import made, routed, run

FILE = Path(__file__).with_name("facts.json")
PARTS = {
    "project": "q, k, v", "out": "out", "norms": "norms of q, k", "gate": "gate of attention",
}  # fmt: skip
"""Field of the attention -> what it is called."""


def by_modules(part: Any) -> bool:
    """Whether anything in a part of a call is called, and not known by its weights."""
    if part is None or isinstance(part, (Linear, Tensor, bool, int, float, str, torch.dtype)):
        return False
    if isinstance(part, (tuple, list)):
        return any(map(by_modules, part))
    if is_dataclass(part):
        return any(by_modules(getattr(part, one.name)) for one in fields(part))
    return isinstance(part, nn.Module) or callable(part)


def called_parts(call: Call) -> list[str]:
    """The parts of a routed block that are modules."""
    image, own, found = call.image, call.image.attention, []
    if isinstance(own, SelfAttention):
        found += [name for field, name in PARTS.items() if by_modules(getattr(own, field))]
    else:
        found.append("attention")
    named = {
        "MLP": image.mlp, "norms of branches": (image.attention_norm, image.mlp_norm),
        "attention to the text": (call.after_attention, call.beside_attention),
    }  # fmt: skip
    return found + [name for name, part in named.items() if by_modules(part)]


def of_case(name: str) -> tuple[str, dict[str, Any]]:
    """Block class -> what one case shows."""
    case, seen = made(name), {}
    model = routed(case)

    def note(call, *args):
        seen["modules"] = called_parts(call)
        return forward_of_one_bin(call, *args)

    forward_of_one_bin = forward.routed
    with mock.patch.object(forward, "routed", note), torch.no_grad():
        run(case, model)
    masks = ["sequence"] if case.valid is not None else []
    masks += ["text"] if case.text_valid is not None else []
    return type(case.block).__name__, seen | {"masks": masks or masks_given(case)}


def masks_given(case: Case) -> list[str]:
    """Of what the block is given masks, by their names: of the image, else of the text."""
    names = [name for name, value in case.inputs.items() if "mask" in name and value is not None]
    return ["image" if name.startswith("hidden") else "text" for name in names]


def facts() -> dict[str, dict[str, Any]]:
    """Block class -> what all its cases show together."""
    found: dict[str, dict[str, Any]] = {}
    for name in BLOCKS:
        block, seen = of_case(name)
        own = found.setdefault(block, {"modules": [], "masks": []})
        for key, values in seen.items():
            own[key] = sorted({*own[key], *values})
    return dict(sorted(found.items()))


def without(what: str) -> dict[str, str]:
    """Models that have no gradient "checkpointing", or no CUDA "graphs", and why."""
    reasons = {name: getattr(make, what, None) for name, make in MODELS.items()}
    return {name: why for name, why in sorted(reasons.items()) if why}


def written() -> str:
    found = {"blocks": facts(), "refused": refusals()}
    found |= {f"without {what}": without(what) for what in ("checkpointing", "graphs")}
    return json.dumps(found, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(print_or_write(__doc__, FILE, written))
