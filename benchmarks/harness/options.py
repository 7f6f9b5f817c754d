"""What a suite is measured at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffratio.evaluation.flops import TransformerShape

BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}


@dataclass(frozen=True)
class Options:
    """B samples (images under guidance in sampling) of N tokens, kept parts of these in tenths, width D, H
    heads, M text tokens, L layers, denoising steps.

    compile_mode: of torch.compile; None leaves compiled peers out. families: blocks of the suite "family";
    none is all. baselines: names of `diffratio.baselines`, of block, model and sampling; none is ToMe beside
    the block alone.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    batch: int = 2
    tokens: int = 1024
    kept: tuple[float, ...] = (1.0, 0.8, 0.7, 0.5, 0.3)
    width: int = 1152
    heads: int = 16
    text: int = 120
    layers: int = 28
    steps: int = 20
    compile_mode: str | None = None
    families: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()

    @property
    def transformer(self) -> TransformerShape:
        """The sizes of a block for a count of FLOPs."""
        return TransformerShape(1, self.width, self.heads, self.tokens, self.text)

    @property
    def backends(self) -> tuple[str, ...]:
        """Row kernels of the device, fastest first."""
        return BACKENDS[self.device]

    def shape(self, *more: str) -> dict[str, int]:
        """The sizes that every block has, and those named."""
        return {name: getattr(self, name) for name in ("batch", "tokens", "width", "heads", "text", *more)}

    def weight_bytes(self, layers: int = 1) -> int:
        """Of q, k, v and out, cross-attention's four, fc1 and fc2 with 4 D between them."""
        return 16 * layers * self.width**2 * self.dtype.itemsize

    def row_bytes(self) -> int:
        """Of x."""
        return self.batch * self.tokens * self.width * self.dtype.itemsize
