"""The steps: a table in one dtype at one batch size, and in each the models that its systems are put on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from diffratio.evaluation.flops import TransformerShape

from ..harness.options import Options
from ..suites.inpaint import ENCODER_LAYERS
from ..suites.model import CAPTION_CHANNELS, Inputs, Models
from ..suites.model import side as latent_side
from .systems import TABLE_1, TABLE_2, System

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HOLES = {"512": 2, "256": 4}
"""Side of the hole in a picture of 1024 pixels -> the part of the picture's side that it is."""


@dataclass(frozen=True)
class Sizes:
    """Of the models: L layers, D channels, H heads, M text tokens; tokens along the side of a picture of 512
    pixels; images in a batch."""

    layers: int = 28
    width: int = 1152
    heads: int = 16
    text: int = 120
    side: int = 32
    images: tuple[int, ...] = (16, 128)


TINY = Sizes(layers=4, width=32, heads=2, text=5, side=4, images=(1, 2))
"""Of a rehearsal."""


@dataclass(frozen=True)
class Work:
    """A system on one kind of model: "pixart", "image" and "crop" (RegenerateImage and RegenerateCrop) or
    "lazy"."""

    kind: str
    system: System

    @property
    def name(self) -> str:
        return self.system.name if self.kind == "pixart" else f"{self.kind}, {self.system.name}"


@dataclass(frozen=True)
class Step:
    """table: "table1" or "table2"; hole: of the latter. Guidance doubles the images."""

    table: str
    dtype: str
    images: int
    hole: str | None
    sizes: Sizes

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.table, self.hole, self.dtype, str(self.images))))

    @property
    def works(self) -> tuple[Work, ...]:
        if self.table == "table1":
            return tuple(Work("pixart", system) for system in TABLE_1)
        dense = TABLE_2[0]
        return *(Work("lazy", system) for system in TABLE_2), Work("image", dense), Work("crop", dense)

    def options(self, kind: str, device: str) -> Options:
        """What models and inputs are made by; of "lazy" the tokens of the whole picture."""
        own, side = self.sizes, self.sizes.side * (2 if kind in ("image", "lazy") else 1)
        return Options(
            device=device, dtype=DTYPES[self.dtype], batch=2 * self.images, tokens=side**2, width=own.width,
            heads=own.heads, text=own.text, layers=own.layers,
        )  # fmt: skip

    def shape(self, kind: str) -> TransformerShape:
        """What is counted: of "lazy" its decoder, on the tokens of the hole."""
        options = self.options(kind, "cpu")
        tokens = options.tokens // HOLES[self.hole] ** 2 if kind == "lazy" else options.tokens
        sizes = options.layers, options.width, options.heads, tokens, options.text
        return TransformerShape(*sizes, caption_channels=CAPTION_CHANNELS)


def all_steps(sizes: Sizes) -> Iterator[Step]:
    """Small batches first, and half precision before fp32, which takes ten times as long."""
    for images in sizes.images:
        for dtype in ("bf16", "fp32"):
            yield Step("table1", dtype, images, None, sizes)
            for hole in HOLES:
                yield Step("table2", dtype, images, hole, sizes)


class Subjects:
    """The models of one step, made when first asked for, one kind at a time."""

    def __init__(self, step: Step, device: str):
        self.step, self.device, self.kind = step, device, None

    def model(self, kind: str) -> nn.Module:
        """The dense model of a kind; the one before it is let go."""
        if kind != self.kind:
            self.kind, self._model = kind, None
            self._model = self._made(kind)
        return self._model

    def _made(self, kind: str) -> nn.Module:
        dense = Models(self.step.options(kind, self.device)).dense
        if kind == "pixart":
            return dense
        from diffratio.inpainting import LazyPixArt
        from diffratio.inpainting.regenerate import regenerate_from_pixart

        made = (
            regenerate_from_pixart(dense) if kind != "lazy" else LazyPixArt.from_pixart(dense, ENCODER_LAYERS)
        )
        return made.eval().requires_grad_(False)

    def calls(self, kind: str, regions: int) -> list[dict]:
        """The arguments of a forward in the middle of each region."""
        options = self.step.options(kind, self.device)
        given = Inputs(options)(0)
        if kind in ("image", "crop"):
            latent = given["hidden_states"]
            given["hidden_states"] = torch.cat([latent, latent, latent[:, :1]], dim=1)
        elif kind == "lazy":
            given |= self._hole(options)
        times = [int((region + 0.5) * 1000 / regions) for region in range(regions)]
        return [given | {"timestep": torch.full_like(given["timestep"], time)} for time in times]

    def _hole(self, options: Options) -> dict:
        """A square hole, and what an encoder would have said of its tokens."""
        from diffratio.inpainting.hole import Hole

        whole = latent_side(options) // 2
        side = whole // HOLES[self.step.hole]
        mask = torch.zeros(options.batch, whole, whole, dtype=torch.bool)
        mask[:, :side, :side] = True
        place = {"device": options.device, "dtype": options.dtype}
        context = torch.randn(options.batch, side**2, options.width, **place)
        return {"hole": Hole.of(mask.flatten(1)).to(options.device), "context": context}
