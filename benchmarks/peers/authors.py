"""The routed block as the authors' pseudo-code writes it, in eager PyTorch: the baseline, kept literal.

Sigmoid scores in the working dtype, top-k then sort, a zeroed clone of x beside the gathered rows, and a
scatter_add at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def authors_block(
    block: nn.Module, x: Tensor, timestep: Tensor, text: Tensor, router_weight: Tensor, keep: int
) -> Tensor:
    """x [B, N, D], timestep [B, 6D], text [B, M, D] through a PixArt block, its MLP scaled by the score.

    block: that of diffusers, or `PlainBlock`.
    """
    batch, _, width = x.shape
    scores = torch.sigmoid(F.linear(x, router_weight[None])).squeeze(-1)
    weights, selected = torch.topk(scores, keep, dim=1, sorted=False)
    selected, order = torch.sort(selected, dim=1)
    weights = torch.gather(weights, 1, order)[..., None]
    expanded = selected[..., None].expand(-1, -1, width)
    kept = torch.gather(x, 1, expanded)
    remaining = x.clone().scatter_(1, expanded, torch.zeros_like(kept))

    modulation = block.scale_shift_table[None] + timestep.reshape(batch, 6, -1)
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)
    kept = kept + gate1 * block.attn1(block.norm1(kept) * (1 + scale1) + shift1)
    kept = kept + block.attn2(kept, encoder_hidden_states=text)
    branch = gate2 * block.ff(block.norm2(kept) * (1 + scale2) + shift2)
    kept = kept + branch * weights
    return remaining.scatter_add(1, expanded, kept)
