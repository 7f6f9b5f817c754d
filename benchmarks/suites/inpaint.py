"""A step of lazy inpainting by the size of its hole, beside the dense model on the whole picture; apart from
it the encoder of the context, which runs once per edit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from diffratio import DiffRatioConfig
from diffratio.routing.apply import route_blocks

from ..harness.options import Options
from ..harness.subject import Candidate, Subject
from .model import Models, Twin, check_blocks, flops, of_a_model, side

HOLES = (1 / 16, 9 / 64, 1 / 4, 1 / 2, 1.0)
"""Parts of the tokens, each a square."""
ENCODER_LAYERS = 4
_CHANNELS, _PATCH = 4, 2


def subjects(options: Options) -> Iterator[Subject]:
    """One call of the decoder at one timestep, all samples with the same hole."""
    yield of_a_model("inpaint", "LazyPixArt", options, _candidates(options))


def _candidates(options: Options) -> Iterator[Candidate]:
    models = Models(options)
    lazy = Lazy(models)
    yield Candidate("diffusers dense", Twin(models).forward, flops=flops(options, None))
    for part in HOLES:
        for kept in (None, *options.kept):
            step = Step(lazy, part, kept)
            about = {"hole": step.tokens / options.tokens}
            yield Candidate(
                f"hole {step.tokens / options.tokens:.1%}" + ("" if kept is None else ", routed"),
                step,
                None if kept is None else step.verify,
                kept=1.0 if kept is None else kept,
                flops=step.flops,
                ours=kept is not None,
                about=about,
            )
    yield Candidate("encoder, once per edit", lazy.encode, flops=_encoder_flops(options))


class Lazy:
    """The dense model's weights in a LazyPixArt, made when first asked for, and its routed twins."""

    def __init__(self, models: Models):
        self.models, self.routed = models, {}

    @cached_property
    def dense(self) -> nn.Module:
        from diffratio.inpainting import LazyPixArt

        return LazyPixArt.from_pixart(self.models.dense, ENCODER_LAYERS).requires_grad_(False)

    def model(self, kept: float | None) -> nn.Module:
        """On the same parameters and buffers."""
        if kept is None:
            return self.dense
        if kept not in self.routed:
            shared = {id(t): t for t in (*self.dense.parameters(), *self.dense.buffers())}
            config = DiffRatioConfig(compression=round(1 - kept, 1))
            self.routed[kept] = route_blocks(copy.deepcopy(self.dense, shared), config)
        return self.routed[kept]

    def encode(self, case: dict[str, Tensor]) -> Tensor:
        picture = case["hidden_states"]
        return self.dense.encode(torch.cat([picture, picture[:, :1]], dim=1))


@dataclass(eq=False)
class Step:
    """The decoder on a square of the tokens."""

    lazy: Lazy
    part: float
    kept: float | None

    @property
    def length(self) -> int:
        """The square's side, in tokens."""
        return max(1, round((self.part * self.lazy.models.options.tokens) ** 0.5))

    @property
    def tokens(self) -> int:
        return self.length**2

    @cached_property
    def given(self) -> dict:
        """The hole, and a context that was encoded before."""
        from diffratio.inpainting.hole import Hole

        o = self.lazy.models.options
        mask = torch.zeros(o.batch, side(o) // _PATCH, side(o) // _PATCH, dtype=torch.bool)
        mask[:, : self.length, : self.length] = True
        context = torch.randn(o.batch, self.tokens, o.width, device=o.device, dtype=o.dtype)
        return {"hole": Hole.of(mask.flatten(1)).to(o.device), "context": context}

    @property
    def flops(self) -> int:
        """PixArt's on the hole's tokens, the fusion, and the patches of the rest, which are embedded too."""
        o = self.lazy.models.options
        fusion = 4 * o.batch * self.tokens * o.width**2
        embedded = 2 * o.batch * (o.tokens - self.tokens) * _CHANNELS * _PATCH**2 * o.width
        return flops(replace(o, tokens=self.tokens), self.kept) + fusion + embedded

    def __call__(self, case: dict[str, Tensor]) -> Tensor:
        return self.lazy.model(self.kept)(**case, **self.given, return_dict=False)[0]

    def verify(self, case: dict[str, Tensor]) -> None:
        """Assert that blocks of the routed model are within the error budget on one sample."""
        one, hole = {name: t[:1] for name, t in case.items()}, self.given["hole"]
        one["hole"] = hole._replace(places=hole.places[:1], counts=hole.counts[:1])
        model, context = self.lazy.model(self.kept), self.given["context"][:1]
        check_blocks(model, lambda: model(**one, context=context, return_dict=False))


def _encoder_flops(options: Options) -> int:
    """Projections, attention and MLP of each block; the patches."""
    tokens, width = options.tokens, options.width
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    embedded = 2 * tokens * (_CHANNELS + 1) * _PATCH**2 * width
    return options.batch * (ENCODER_LAYERS * block + embedded)
