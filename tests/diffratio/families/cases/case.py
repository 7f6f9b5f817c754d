"""A tiny random block or model of a family, its inputs, and what its block does to some of its rows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

HEADS, WIDTH = 2, 16
D = HEADS * WIDTH
N, TEXT = 12, 5
BATCH = 2
"""As many as heads: where wrong rope would broadcast without an error."""


@dataclass
class Case:
    """A block, and the plain definition of its routed form: each sample alone, through the block's own
    forward on gathered rows."""

    block: nn.Module
    inputs: dict[str, Any]
    """Of the block's forward, by name, for the whole batch."""
    alone: Callable[[int, Tensor], dict[str, Any]]
    """(sample, places of its kept image tokens) -> inputs of that sample with these image tokens alone."""
    mlp: nn.Module
    """What gives the branch that the score multiplies."""
    parts: Callable[[Any], tuple[Tensor, Tensor | None]] = lambda out: (out, None)
    """What the block returns -> the tensor that holds the image's rows, and the text's."""
    tokens: str = "hidden_states"
    """The input that holds the image's rows."""
    image: Callable[[int], slice] = lambda sample: slice(0, N)
    """Which rows of that input are the image's; those of the sample alone begin at the same place."""
    image_out: Callable[[int], slice] | None = None
    """The same of what `parts` gives, where that differs."""
    mlp_start: Callable[[int], int] = lambda sample: 0
    """Rows of `mlp` of a sample alone that come before the image's."""
    told: dict[str, Any] = field(default_factory=dict)
    """What the model's call knows besides: arguments of its forward."""
    model: dict[str, Any] = field(default_factory=dict)
    """What the model has besides: attributes."""
    valid: Tensor | None = None
    """[B, rows] bool of the tensor that holds the image, rows that are no padding."""
    text_valid: Tensor | None = None
    tolerance: dict[str, float] = field(default_factory=dict)
    """Where the block itself rounds more coarsely than its dtype."""
    rows_first: bool = False
    """Whether that input is [rows, B, D]."""

    @property
    def samples(self) -> Tensor:
        """The input that holds the image's rows [B, rows, D]."""
        x = self.inputs[self.tokens]
        return x.transpose(0, 1) if self.rows_first else x


class Holder(nn.Module):
    """A model of one block."""

    def __init__(self, block: nn.Module, **attributes):
        super().__init__()
        self.block = block
        vars(self).update(attributes)

    def forward(self, timestep, inputs, **told):
        return self.block(**inputs)


def angles(rows: int, width: int | None = None, twice: bool = True, seed: int = 0) -> tuple[Tensor, Tensor]:
    """cos and sin [rows, width / 2], or [rows, width] with every angle twice, side by side."""
    width = WIDTH if width is None else width
    angle = torch.rand(rows, width // 2, generator=torch.Generator().manual_seed(seed)) * 6
    angle = angle.repeat_interleave(2, dim=1) if twice else angle
    return angle.cos(), angle.sin()


def awake(module: nn.Module) -> nn.Module:
    """Vectors that start as 0 or 1 (gates, tables, norm weights) say nothing: give them values."""
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1 or "scale_shift_table" in name or not parameter.any():
            nn.init.normal_(parameter, mean=0.3, std=0.3)
    return module.eval()


def sample(value: Tensor, b: int) -> Tensor:
    """One sample of a batch, still a batch."""
    return value[b : b + 1]


class FirstOfTwo:
    """An MLP that a block calls for its image and then for its text: hooks see the calls for the image."""

    def __init__(self, mlp: nn.Module):
        self.mlp = mlp

    def register_forward_hook(self, hook):
        calls = []

        def every_other(module, args, out):
            calls.append(None)
            return hook(module, args, out) if len(calls) % 2 else None

        return self.mlp.register_forward_hook(every_other)
