"""What one call of a transformer block is, in the terms of the routed block.

Every block that can be routed is bound to a `Call`: raw weights by `mod_block`, modules of other libraries by
the spec of their family. The type of a part decides how it is computed: a bundle by our operators, with a
fused kernel where there is one; a module on the rows alone; any other callable with the rows' places."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..types import Activation, HeadNorm, Linear, PackedRows, Product, Rope, RowNorm, Run

Branch = nn.Module | Callable[[Tensor, PackedRows], Tensor]
"""A part that is not known: a module [T, D] -> [T, D], or (its input [T, D], which rows these are) -> [T, D].
"""
Norm = Callable[[Tensor], Tensor]
"""[T, H, d] -> [T, H, d], or [T, D] -> [T, D]."""


@dataclass(slots=True)
class Valid:
    """Which tokens of a stream that is not routed count as keys.

    Example:
        >>> valid = Valid.of(torch.ones(B, M, dtype=torch.bool))
    """

    order: Tensor
    """[B, M] int64: the places of each sample's tokens, those that count first."""
    lengths: Tensor
    """[B] int32: how many count."""

    @staticmethod
    def of(mask: Tensor) -> "Valid":
        """Of a mask [B, M]."""
        mask = mask.bool()
        order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        return Valid(order, mask.sum(1, dtype=torch.int32))


@dataclass(slots=True)
class KeysValues:
    """What every row attends to besides the rows: a text without queries, or a cache.

    Example:
        >>> more = KeysValues(torch.randn(B, M, H, D // H), torch.randn(B, M, H, D // H))
    """

    key: Tensor
    value: Tensor
    """[B, M, kv_heads, d], normed and turned."""
    lengths: Tensor | None = None
    """[B] int32: the first ones of the M that count; None: all."""

    @staticmethod
    def masked(key: Tensor, value: Tensor, valid: Valid | None) -> "KeysValues":
        """Those that count brought to the front."""
        if valid is None:
            return KeysValues(key, value)
        order = valid.order[..., None, None]
        key, value = (t.take_along_dim(order, dim=1) for t in (key, value))
        return KeysValues(key, value, valid.lengths)


@dataclass(slots=True)
class SelfAttention:
    """Attention among the kept rows.

    Example:
        >>> q, k, v, out = (nn.Linear(D, D) for _ in range(4))
        >>> attention = SelfAttention((q, k, v), out, H)
    """

    project: Product | tuple[Product, Product, Product]
    """[T, D] -> query, key and value: joined [T, 3D], or each alone."""
    out: Product | None
    """[T, D] -> [T, D] of the result; None where the `Parallel` MLP has it."""
    heads: int
    kv_heads: int | None = None
    """Of key and value, where a number of heads share them; None: H."""
    norms: HeadNorm | tuple[Norm, Norm] | None = None
    """Of query and key."""
    across_heads: bool = False
    """Whether modules that are norms are given [T, D] and not [T, H, d]."""
    rope: Rope | None = None
    gate: Product | None = None
    """[T, D] -> [T, D]: the result is multiplied by its sigmoid before `out`."""
    key_scale: Tensor | None = None
    """[1 or B, N, 1 or H]: factors of the keys."""
    more: KeysValues | None = None
    """What the rows attend to besides each other."""
    merge: Callable[[Tensor, PackedRows], tuple[Tensor, PackedRows]] | None = None
    """Rows [T, D] that stand in for those that attention is given, and which these are; `out` gives back as
    many as came."""

    @property
    def bare(self) -> bool:
        """Whether query, key and value of all rows are attended to as they are projected."""
        parts = (self.kv_heads, self.norms, self.rope, self.gate, self.key_scale, self.more, self.merge)
        return all(part is None for part in parts)


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
    others: tuple[Tensor, ...] = ()
    """More keys and values [B, M', 2, D]: attended to on their own, and added before `out`."""
    norm: Norm | RowNorm | None = None
    query_norm: Norm | RowNorm | None = None
    """Of the rows [T, D] before `query`, and of what it gives."""

    @property
    def called(self) -> bool:
        """Whether a module is given the rows."""
        module = self.norm is not None and not isinstance(self.norm, RowNorm)
        return module or not isinstance(self.query, Linear)


@dataclass(slots=True)
class SecondAttention:
    """A second attention among the same rows, of the tokens as they came in (SD3.5).

    Example:
        >>> q, k, v, out = (nn.Linear(D, D) for _ in range(4))
        >>> second = SecondAttention(SelfAttention((q, k, v), out, H), torch.randn(B, 3, D))
    """

    attention: SelfAttention
    modulation: Tensor
    """[B, 3, D]: shift, scale, gate."""


@dataclass(slots=True)
class Exchange:
    """What the rows and a second stream, that is not routed and has an attention of its own, take of each
    other between attention and MLP (LTX-2: video and audio).

    Example:
        >>> exchange = Exchange(lambda run, hidden, rows: (hidden, torch.randn(B, M, D)))
    """

    call: Callable[[Run, Tensor, PackedRows], tuple[Tensor, Tensor]]
    """(run, hidden [T, D], which rows these are) -> hidden after it, and the finished second stream, which
    `Call.output` is given as text."""


@dataclass(slots=True)
class Mlp:
    """Two products around an activation. With two bins fc2 runs once, on their blend, where its bias is
    known.

    Example:
        >>> mlp = Mlp(nn.Linear(D, F), nn.Linear(F, D))
        >>> halves = nn.Linear(D, F), nn.Linear(D, F)
        >>> swiglu = Mlp(halves, nn.Linear(F, D), activation=Activation("silu", gate="first"))
    """

    fc1: Product | tuple[Product, Product]
    """[T, D] -> [T, F], [T, 2F] where the activation has a gate; or its two halves, each alone."""
    fc2: Product
    fc2_bias: Tensor | None = None
    """What an affine fc2 adds, where it is not a bundle `types.Linear`. None: fc2 runs on the rows of both
    bins, so it may be anything."""
    activation: Activation = Activation()
    """What is between them."""


@dataclass(slots=True)
class Parallel:
    """An MLP beside the attention, and one product out of both: gate1 * out([attention, inner]).

    The score multiplies `inner`, as it multiplies the other MLPs' branches.

    Example:
        >>> fc1, out = nn.Linear(D, F), nn.Linear(D + F, D)
        >>> mlp = Parallel(fc1, out, activation=Activation("gelu"))
        >>> unknown = Parallel(nn.Sequential(fc1, nn.Mish()), out)
    """

    inner: Product | None
    """What attention reads [T, D], with `columns` the rest of a joined projection -> [T, F], [T, 2F] where
    the activation has a gate. None: that rest is what the activation is given."""
    out: Product
    """[T, D + F] -> [T, D]."""
    columns: int = 0
    """Of `SelfAttention.project` behind query, key and value."""
    activation: Activation | None = None
    """Of what `inner` gives; None: it is activated."""


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
    """[B, 6, D]: shift1, scale1, gate1, shift2, scale2, gate2; with groups [G, 6, D]."""
    attention: SelfAttention | Branch
    mlp: Mlp | Parallel | Branch | None
    """None: the stream ends at the attention, its tokens are read no more."""
    eps: float = 1e-6
    mlp_eps: float = 1e-6
    """Of the two norms."""
    norm: str = "layer"
    """"layer" or "rms", without an affine part: `fold` it into the modulation."""
    groups: Tensor | None = None
    """[B, N] int64: which row of the modulation belongs to each token; None: that of its sample."""
    attention_norm: Norm | RowNorm | None = None
    mlp_norm: Norm | RowNorm | None = None
    """Of a branch [T, D], before its gate; as a bundle it is computed where the gate is."""
    adds_attention: bool = True
    """Whether the MLP's branch is added to h; else to x, and h is what the MLP reads alone (AuraFlow)."""
    mlp_reads_input: bool = False
    """Whether the MLP is given what the attention is given: no second norm."""
    valid: Valid | None = None
    """Of a stream that is not routed, the tokens that count as keys; None: all."""


@dataclass(slots=True)
class Layout:
    """Which tokens of the image stream may be skipped, where not all may: the others are kept always, with
    the factor 1 (text, references), or are padding, which nobody reads.

    Example:
        >>> layout = Layout.span(x, start=8)  # eight tokens of text in front
    """

    order: Tensor
    """[B, N] int64: places of each sample's tokens: those that are routed, those that are kept always (first
    the ones that count as keys), padding."""
    routed: list[int]
    pinned: list[int]
    """How many of each sample, known to the host; one number is that of every sample."""
    pinned_keys: Tensor | None = None
    """[B] int32: how many of the pinned tokens count as keys; None: all."""

    @staticmethod
    def span(x: Tensor, start: int = 0, stop: int | None = None, valid: Tensor | None = None) -> "Layout":
        """Of x [B, N, D] tokens from start to stop are routed, the others are kept always.

        valid: [B, N] bool, the tokens that count; those that are routed do.
        """
        batch, tokens = x.shape[:2]
        stop = tokens if stop is None else stop
        places = torch.arange(tokens, device=x.device)
        order = torch.cat([places[start:stop], places[:start], places[stop:]]).expand(batch, tokens)
        keys, routed, pinned = None, stop - start, tokens - (stop - start)
        if valid is not None:
            others = Valid.of(valid.gather(1, order[:, routed:]))
            order = torch.cat([order[:, :routed], order[:, routed:].gather(1, others.order)], dim=1)
            keys = others.lengths
        return Layout(order, [routed], [pinned], keys)

    @staticmethod
    def ragged(x: Tensor, routed: list[tuple[int, int]], pinned: list[tuple[int, int]]) -> "Layout":
        """Of x [B, N, D] tokens from start to stop, of each sample its own, are routed and kept always;
        others are padding."""
        places, rows = torch.arange(x.shape[1], device=x.device), []  # a CUDA graph cannot copy a list
        for spans in zip(routed, pinned, strict=True):
            edges = [0, *(edge for span in sorted(spans) for edge in span), x.shape[1]]
            others = zip(edges[::2], edges[1::2], strict=True)
            rows.append(torch.cat([places[start:stop] for start, stop in (*spans, *others)]))
        counts = ([stop - start for start, stop in spans] for spans in (routed, pinned))
        return Layout(torch.stack(rows), *counts)


def _image_alone(image: Tensor, text: Tensor | None) -> Tensor:
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
    after_attention: CrossAttention | SecondAttention | Exchange | Branch | None = None
    """What is added between attention and MLP, without norm and gate."""
    beside_attention: Branch | None = None
    """Given what attention gives, behind `out` where it has one: what is added to it, without the gate."""
    text: Stream | None = None
    """A stream that is not routed: attention is among the kept rows of the image and these."""
    layout: Layout | None = None
    """None: every token of the image may be skipped."""
    output: Callable[[Tensor, Tensor | None], Any] = _image_alone
    """What the block's forward returns for the finished tokens of image [B, N, D] and text."""

    @property
    def one_stream(self) -> bool:
        """Whether nothing is computed where no row of the image is."""
        return self.text is None and not isinstance(self.after_attention, Exchange)


def fold(scale: Tensor, weight: Tensor | None, shift: Tensor | None = None, bias: Tensor | None = None):
    """shift and scale with which a norm without an affine part is the modulated norm with it.

    (norm * weight + bias) * (1 + scale) + shift = norm * (1 + scale') + shift'.
    """
    shift = torch.zeros_like(scale) if shift is None else shift
    if bias is not None:
        shift = shift + (1 + scale) * bias
    return shift, scale if weight is None else (1 + scale) * weight - 1
