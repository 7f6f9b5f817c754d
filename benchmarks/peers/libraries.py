"""Kernels of other libraries as peers of ours. One that is not installed is a candidate that says so."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffratio_kernels import reference
from diffratio_kernels._backends import NotAvailable

PACKAGES = {"quack": "quack-kernels", "flashinfer": "flashinfer-python"}
"""What is imported -> what is installed."""
SMALLEST_INDEX = 1
"""FlashInfer's TopKTieBreak.SMALL: of equal scores the lower places are kept."""


def installed(name: str) -> None:
    """Raises NotAvailable where a library is not there."""
    if find_spec(name) is None:
        raise NotAvailable(f"{PACKAGES[name]} is not installed")


def quack() -> ModuleType:
    """Our functions on QuACK.

    Raises:
        NotAvailable: it is not installed.
    """
    installed("quack")
    return import_module(f"{__package__}.quack")


def route(x: Tensor, router_weight: Tensor, keep: list[int], router_bias: Tensor | None = None):
    """Scores, FlashInfer's top-k and a sort, for equal kept counts: weights and places [B, K]."""
    installed("flashinfer")
    bias = None if router_bias is None else router_bias.view(1)
    logits = F.linear(x, router_weight[None], bias).squeeze(-1).float()
    values, places = top_k(logits, keep[0])
    places, order = torch.sort(places, dim=1)
    return torch.sigmoid(values).gather(1, order), places


def top_k(logits: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """FlashInfer's values and places [B, K] of logits [B, N] fp32, ties by our rule."""
    import flashinfer

    return flashinfer.top_k(logits, keep, sorted=False, deterministic=True, tie_break=SMALLEST_INDEX)


def check_top_k(call: Any) -> None:
    """Assert that FlashInfer keeps the tokens that `reference.select_tokens` keeps, at a call's size: of
    drawn scores, and of scores of which most tie. A peer of an exact selection is exact."""
    installed("flashinfer")
    x, keep = call.arguments["x"], call.arguments["keep"][0]
    drawn = torch.randn(x.shape[:2], device=x.device)
    for name, logits in (("drawn", drawn), ("tied", drawn.mul(2).round().add(0.5))):
        values, places = top_k(logits, keep)
        places, order = places.sort(dim=1)
        wanted = reference.select_tokens(logits, [keep] * len(x))[0].view(len(x), -1)
        first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
        assert torch.equal(places + first, wanted), (
            f"flashinfer top_k: other tokens of {name} scores are kept"
        )
        same = torch.equal(values.gather(1, order), logits.gather(1, places))
        assert same, f"flashinfer top_k: values of {name} scores are of other tokens"
