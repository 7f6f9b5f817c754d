"""The dense PixArt block in plain PyTorch, for machines without diffusers: their names and mathematics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainAttention(nn.Module):
    """Attention of [B, N, D] to itself, or to `encoder_hidden_states` [B, M, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        source = x if encoder_hidden_states is None else encoder_hidden_states
        projected = self.to_q(x), self.to_k(source), self.to_v(source)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in projected)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class _Gelu(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class PlainFeedForward(nn.Module):
    """MLP with the tanh GELU; its second product is net.2, as in diffusers."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.net = nn.ModuleList([_Gelu(width, hidden), nn.Identity(), nn.Linear(hidden, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class PlainBlock(nn.Module):
    """x [B, N, D], timestep [B, 6 D], encoder_hidden_states [B, M, D] -> [B, N, D] (adaLN-single)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.attn1, self.attn2 = (PlainAttention(width, heads) for _ in range(2))
        self.ff = PlainFeedForward(width, 4 * width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        modulation = self.scale_shift_table[None] + timestep.reshape(x.shape[0], 6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)
        x = x + gate1 * self.attn1(self.norm1(x) * (1 + scale1) + shift1)
        x = x + self.attn2(x, encoder_hidden_states=encoder_hidden_states)
        return x + gate2 * self.ff(self.norm2(x) * (1 + scale2) + shift2)
