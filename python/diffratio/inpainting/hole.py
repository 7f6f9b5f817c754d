"""The tokens of each sample's hole, and blocks that run on these alone."""

from typing import NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor

from ..families.basic_transformer import BasicTransformerSpec
from ..families.modules import ragged, told
from ..families.registry import register_block_spec


class Hole(NamedTuple):
    """Which of the N tokens of each sample are made. A tuple, so that CUDA graphs and DDP look into it.

    Example:
        >>> hole = Hole.of(torch.rand(B, N) < 0.2)
    """

    places: Tensor
    """[B, n] int64, ascending, n the longest hole; N behind the last of a shorter one."""
    counts: list[int]
    """Of each sample, known to the host."""
    tokens: int
    """N."""

    @staticmethod
    def of(mask: Tensor) -> "Hole":
        """The hole of mask [B, N] bool.

        Raises:
            ValueError: a sample's mask marks no token.
        """
        tokens, counts = mask.shape[1], mask.sum(1).tolist()
        if 0 in counts:
            raise ValueError(f"mask of sample {counts.index(0)} is empty: there is nothing to paint")
        order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)]
        return Hole(order.masked_fill(~mask.gather(1, order), tokens), counts, tokens)

    @property
    def valid(self) -> Tensor | None:
        """[B, n] bool: the places that are one; None where all are."""
        return None if len(set(self.counts)) == 1 else self.places < self.tokens

    def to(self, device: torch.device | str) -> "Hole":
        """The same with `places` there."""
        return self._replace(places=self.places.to(device))

    def twice(self) -> "Hole":
        """Of the samples, and again of the samples: what guidance calls a model with."""
        return self._replace(places=torch.cat([self.places] * 2), counts=self.counts * 2)

    def take(self, tokens: Tensor) -> Tensor:
        """Tokens of the hole [B, n, D] of all tokens [B, N, D]; behind a shorter hole stand copies."""
        return tokens.take_along_dim(self.places.clamp(max=self.tokens - 1)[..., None], dim=1)

    def put(self, rows: Tensor) -> Tensor:
        """`take` undone: [B, N, E] of rows [B, n, E], zero outside of the hole."""
        whole = rows.new_zeros(rows.shape[0], self.tokens + 1, rows.shape[2])
        return whole.scatter(1, self.places[..., None].expand_as(rows), rows)[:, : self.tokens]


class HoleBlock(BasicTransformerBlock):
    """PixArt's block on the tokens of a hole. Where samples differ in their number, the dense block is given
    a mask, and the routed one packs the rows that there are."""


class HoleSpec(BasicTransformerSpec):
    """PixArt's block; behind a shorter hole's tokens is padding, of which the model's call knows."""

    def layout(self, model, given):
        hole = given.get("hole")
        return None if hole is None else hole.counts

    def bind(self, block, hidden_states, attention_mask=None, *args, **kwargs):
        counts = told(block, self)
        call = super().bind(block, hidden_states, None, *args, **kwargs)
        if counts is not None:
            nothing = [(n, n) for n in counts]
            call.layout = ragged(block, hidden_states, [(0, n) for n in counts], nothing)
        return call


register_block_spec(HoleBlock, HoleSpec())
