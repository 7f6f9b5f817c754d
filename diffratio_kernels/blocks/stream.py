"""What one call of a transformer block is, in the terms of the routed block.

Every block that can be routed is bound to a `Call`: raw weights by `mod_block`, modules of other libraries by
the spec of their family. The type of a part decides how it is computed: a bundle by our operators, with a
fused kernel where there is one; any other callable as it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..types import Linear, PackedRows, Product

Branch = Callable[[Tensor, PackedRows], Tensor]
"""A part that is not known: (its input [T, D], which rows these are) -> [T, D]."""


@dataclass(slots=True)
class SelfAttention:
    """Attention among the kept rows, without norms of query and key.

    Example:
        >>> q, k, v, out = (nn.Linear(D, D) for _ in range(4))
        >>> attention = SelfAttention((q, k, v), out, H)
    """

    project: Linear | tuple[Product, Product, Product]
    """[T, D] -> query, key and value, joined [T, 3D] or each [T, D]."""
    out: Product
    heads: int
    """`out` [T, D] -> [T, D] of the result, and H."""


@dataclass(slots=True)
class CrossAttention:
    """Attention to a text that is not routed.

    Example:
        >>> query, out = nn.Linear(D, D), nn.Linear(D, D)
        >>> cross = CrossAttention(query, out, H, torch.randn(B, M, 2, D))
    """

    query: Product
    out: Product
    heads: int
    keys_values: Tensor
    """[B, M, 2, D]."""
    lengths: Tensor | None = None
    """[B] int32: how many of the M tokens count."""


@dataclass(slots=True)
class Mlp:
    """Two products around a tanh GELU. With two bins fc2 runs once, on their blend, where its bias is known.

    Example:
        >>> mlp = Mlp(nn.Linear(D, F), nn.Linear(F, D))
    """

    fc1: Product
    fc2: Product
    fc2_bias: Tensor | None = None
    """What an affine fc2 adds, where it is not a bundle `types.Linear`. None: fc2 runs on the rows of both
    bins, so it may be anything."""


@dataclass(slots=True)
class Stream:
    """The tokens of one stream, their modulation and their branches.

    h = x + gate1 * attention(LN(x) * (1 + scale1) + shift1);  h = h + after_attention(h)
    y = h + gate2 * mlp(LN(h) * (1 + scale2) + shift2)

    Example:
        >>> q, k, v, out = (nn.Linear(D, D) for _ in range(4))
        >>> mlp = Mlp(nn.Linear(D, F), nn.Linear(F, D))
        >>> image = Stream(x, modulation, SelfAttention((q, k, v), out, H), mlp)
    """

    tokens: Tensor
    """x [B, N, D]."""
    modulation: Tensor
    """[B, 6, D]: shift1, scale1, gate1, shift2, scale2, gate2."""
    attention: SelfAttention | Branch
    mlp: Mlp | Branch
    eps: float = 1e-6
    mlp_eps: float = 1e-6
    """Of the two layer norms, which have no affine part."""


def _as_it_is(image: Tensor) -> Tensor:
    return image


@dataclass(slots=True)
class Call:
    """One call of a block.

    Example:
        >>> def attention(normed, rows):  # [T, D] -> [T, D]: a part that is not known is called as it is
        ...     return torch.zeros_like(normed)
        >>> call = Call(Stream(x, modulation, attention, Mlp(nn.Linear(D, F), nn.Linear(F, D))))
    """

    image: Stream
    after_attention: CrossAttention | Branch | None = None
    """What is added between attention and MLP, without norm and gate."""
    output: Callable[[Tensor], Any] = _as_it_is
    """What the block's forward returns for the finished tokens [B, N, D]."""
