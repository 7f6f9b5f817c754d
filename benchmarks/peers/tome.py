"""Token merging (ToMe for diffusion, Bolya & Hoffman 2023) in a PixArt block: similar tokens share one place.

As its authors run it on images, with merging in self-attention, cross-attention and MLP: one token of every
2x2 is a destination; the r others that are most like one are averaged into it, and get its output back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Matching:
    """Which tokens of x [B, N, D], a square image in raster order, merge so that `left` remain."""

    def __init__(self, x: Tensor, left: int):
        batch, tokens, _ = x.shape
        side = round(tokens**0.5)
        if side * side != tokens or side % 2:
            raise ValueError(f"tokens={tokens} must be a square of an even side")
        if not tokens // 4 <= left <= tokens:
            raise ValueError(f"left={left}: of {tokens} tokens a quarter are destinations, which stay")
        place = torch.arange(tokens, device=x.device).view(side // 2, 2, side // 2, 2)
        self.destinations = place[:, 0, :, 0].flatten()
        sources = torch.cat([part.flatten() for part in (place[:, 0, :, 1], place[:, 1])])
        metric = x / x.norm(dim=-1, keepdim=True)
        likeness = metric[:, sources] @ metric[:, self.destinations].mT
        best, partner = likeness.max(-1)
        order = best.argsort(dim=-1, descending=True)
        merged, alone = order.split([tokens - left, len(sources) - (tokens - left)], dim=-1)
        self.merged, self.alone = sources[merged], sources[alone]  # [B, r], [B, N - destinations - r]
        self.partner = partner.gather(1, merged)  # [B, r], places among the destinations
        counts = torch.ones(batch, len(self.destinations), device=x.device, dtype=x.dtype)
        self.counts = counts.scatter_add_(1, self.partner, torch.ones_like(self.partner, dtype=x.dtype))

    def merge(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, left, D]: destinations as means of what merged into them, then the others."""
        goal = x[:, self.destinations]
        goal = goal.scatter_add(1, _rows(self.partner, x), x.gather(1, _rows(self.merged, x)))
        return torch.cat([goal / self.counts[..., None], x.gather(1, _rows(self.alone, x))], dim=1)

    def unmerge(self, y: Tensor) -> Tensor:
        """[B, left, D] -> [B, N, D]: a merged token gets its destination's row."""
        goal, alone = y.split([len(self.destinations), self.alone.shape[1]], dim=1)
        out = y.new_empty(y.shape[0], goal.shape[1] + alone.shape[1] + self.merged.shape[1], y.shape[2])
        out[:, self.destinations] = goal
        out.scatter_(1, _rows(self.alone, y), alone)
        return out.scatter_(1, _rows(self.merged, y), goal.gather(1, _rows(self.partner, y)))


def _rows(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])


def tome_block(block: nn.Module, x: Tensor, timestep: Tensor, text: Tensor, left: int) -> Tensor:
    """x [B, N, D], timestep [B, 6 D], text [B, M, D] through a PixArt block with `left` tokens in every part.

    block: that of diffusers, or `PlainBlock`.
    """
    modulation = block.scale_shift_table[None] + timestep.reshape(x.shape[0], 6, -1)
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)
    matching = Matching(x, left)
    normed = matching.merge(block.norm1(x) * (1 + scale1) + shift1)
    x = x + gate1 * matching.unmerge(block.attn1(normed))
    x = x + matching.unmerge(block.attn2(matching.merge(x), encoder_hidden_states=text))
    normed = matching.merge(block.norm2(x) * (1 + scale2) + shift2)
    return x + gate2 * matching.unmerge(block.ff(normed))
