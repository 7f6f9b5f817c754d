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
        rows = self._rows(self.tokens, self.places.clamp(max=self.tokens - 1))
        return tokens.flatten(0, 1).index_select(0, rows).view(*self.places.shape, -1)

    def put(self, rows: Tensor) -> Tensor:
        """`take` undone: [B, N, E] of rows [B, n, E], zero outside of the hole."""
        room = self.tokens + 1  # the last one for what stands behind a shorter hole
        whole = rows.new_zeros(len(rows) * room, rows.shape[2])
        whole = whole.index_copy(0, self._rows(room, self.places), rows.flatten(0, 1))
        return whole.view(len(rows), room, -1)[:, : self.tokens]

    @staticmethod
    def _rows(length: int, places: Tensor) -> Tensor:
        """Of the flattened samples of a length [B * n]."""
        first = torch.arange(0, len(places) * length, length, device=places.device)
        return (places + first[:, None]).flatten()


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
