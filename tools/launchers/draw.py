"""What random calls are drawn from, and what is known of an operator."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffratio_kernels import reference

WIDTHS = (8, 12, 24, 24, 40, 40, 72, 72, 129, 136, 1152)
TOKENS = (1, 2, 5, 9, 9, 17, 17, 33, 40)
HEAD_DIMS = (8, 16, 24, 32, 40, 64, 72, 72, 80, 96, 104, 128, 136, 192, 256)
SHARED = ((1, 1), (1, 1), (2, 2), (2, 2), (3, 1), (6, 2))
"""Heads of query, and of key and value."""


class Draw:
    """Choices and tensors from one seed; tensors are drawn in fp32 and rounded."""

    def __init__(self, seed: int, dtype: torch.dtype, again: int = 0):
        """again: the same choices with other tensors."""
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed + 1_000_003 * again)
        self.dtype = dtype

    def choice(self, *values):
        return self.random.choice(values)

    def tensor(self, *shape: int, std: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return (torch.randn(*shape, generator=self.generator) * std).to(dtype or self.dtype)

    def lengths(self, samples: int, longest: int) -> list[int]:
        """A count in 0..longest per sample, often an end of that range."""
        inside = self.random.randint
        return [self.choice(0, 1, longest, *(inside(0, longest) for _ in range(4))) for _ in range(samples)]

    def heads(self, rows: int, heads: int, few: int, head_dim: int) -> tuple[Tensor, ...]:
        """query [T, H, d], key and value [T, h, d], joined as a projection gives them."""
        return self.tensor(rows, heads + 2 * few, head_dim).split([heads, few, few], dim=1)

    def modulation(self, owners: int, width: int) -> tuple[Tensor, ...]:
        """shift, scale, gate [B or G, D], views of one tensor in the working dtype or fp32."""
        dtype = self.choice(self.dtype, torch.float32)
        return self.tensor(owners, 6, width, std=0.5, dtype=dtype).unbind(1)[:3]

    def groups(self, batch: int, tokens: int) -> tuple[Tensor | None, int]:
        """Which row of the modulation each token has, and how many there are: one for each sample, for each
        token, two for each sample, any of five."""
        kind = self.choice("sample", "sample", "sample", "token", "two", "any")
        samples, places = torch.arange(batch)[:, None], torch.arange(tokens)
        if kind == "sample":
            return None, batch
        if kind == "token":
            return samples * tokens + places, batch * tokens
        if kind == "two":
            return 2 * samples + (places >= tokens // 2), 2 * batch
        return torch.randint(0, 5, (batch, tokens), generator=self.generator), 5

    def branch_norm(self, width: int) -> dict:
        """The norm of a branch by name: mostly none."""
        norm = self.choice("none", "none", "none", "rms", "rms", "layer")
        dtype = self.choice(self.dtype, torch.float32)
        weight, bias = (self.tensor(width, std=0.5, dtype=dtype) for _ in range(2))
        if norm == "none":
            return {"norm": "none", "norm_weight": None, "norm_bias": None}
        weight, bias = self.choice((1 + weight, None), (1 + weight, bias), (None, None))
        return {"norm": norm, "norm_weight": weight, "norm_bias": bias}


@dataclass(frozen=True)
class Operator:
    """draw: arguments by name; kernels, reference: all results by name, from these arguments."""

    draw: Callable[[Draw], dict]
    kernels: Callable[..., dict[str, Tensor]]
    reference: Callable[..., dict[str, Tensor]]


def differentiate(function: Callable, leaves: dict, incoming: list[Tensor | None]) -> dict[str, Tensor]:
    """The tensors by name that `function(**leaves)` gives, and the gradient of each leaf but None."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in leaves.items()}
    outs = function(**leaves)
    leaves = {name: t for name, t in leaves.items() if t is not None}
    reached = [
        (out, grad)
        for out, grad in zip(outs.values(), incoming, strict=True)
        if grad is not None and out.requires_grad
    ]
    grads = [torch.zeros_like(t) for t in leaves.values()]
    if reached:
        outputs, incoming = zip(*reached, strict=True)
        grads = torch.autograd.grad(outputs, list(leaves.values()), incoming, materialize_grads=True)
    return {name: out.detach() for name, out in outs.items()} | {
        f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)
    }


def draw_kept(draw: Draw) -> tuple[int, int, int, Tensor]:
    """B, N, D and the index of kept rows, in the order of one bin, of two, or in none."""
    batch, tokens, width = draw.choice(0, 1, 1, 2, 2, 3), draw.choice(*TOKENS), draw.choice(*WIDTHS)
    keep = draw.lengths(batch, tokens)
    small = draw.choice(None, [draw.random.randint(0, k) for k in keep])
    index, _ = reference.select_tokens(draw.tensor(batch, tokens, dtype=torch.float32), keep, small)
    shuffled = index[torch.randperm(index.shape[0], generator=draw.generator)]
    return batch, tokens, width, draw.choice(index, index, index, shuffled)
