"""The bundles in which arguments travel: schemas of operators are flat, functions inside of the package take
these.

Letters everywhere: B samples, N tokens, K kept, D width, H heads, d width of a head, M text tokens, T packed
rows, S packed rows of the smaller of two bins."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(slots=True)
class Places:
    """Where the packed rows of two bins stand: it follows from their counts."""

    small: Tensor
    """[S]: the packed row of each small row."""
    sample: Tensor
    """[T] int64: of each packed row."""
    only_large: Tensor
    """[T] bool: whether it is no small row."""


@dataclass(slots=True)
class Bins:
    """What the packed rows of two bins have besides (paper section 3.3).

    Each sample's large set is packed with its small set first. Tensors of "both" bins have T + S rows: the
    large rows of all samples, then the small rows of all samples again."""

    weight_large: Tensor
    """[B], any float dtype: w of each sample's large bin; the small one weighs 1 - w."""
    cu_seqlens_large: Tensor
    """[B+1] int32, cumulative kept counts."""
    cu_seqlens_small: Tensor
    rows: int
    """T."""
    small: int
    """S."""
    counts_small: list[int] | None = None
    """Small rows of each sample, known to the host."""
    places: Places | None = None
    """None where nobody has made them: `ops.two_bin_gelu.reference.places_of`."""


@dataclass(slots=True)
class PackedRows:
    """Which rows of x [B, N, D] are computed, packed sample after sample.

    One form for equal and unequal kept counts, ragged text and two bins.
    """

    index: Tensor
    """[T] int64: row of the flattened [B*N], each at most once; row t belongs to sample index[t] //
    tokens."""
    tokens: int
    """N."""
    counts: list[int] | None = None
    """Kept rows of each sample, known to the host: no launch waits for the device. One number is that of
    every sample: a compiled graph is for any number of them."""
    cu_seqlens: Tensor | None = None
    """[B+1] int32, cumulative counts."""
    row_map: Tensor | None = None
    """[B*N] int32: the packed row of each row of x, -1 where none; None until some kernel has made it."""
    bins: Bins | None = None
    """With two bins; counts and cu_seqlens are then those of the large one."""
    key_lengths: Tensor | None = None
    """[B] int32: the first ones of each sample's rows that count as keys; None: all."""
    groups: Tensor | None = None
    """[B, N] int64: the row of the modulation [G, D] that belongs to each token; None: that of its sample."""

    @property
    def owner(self) -> Tensor:
        """[T]: the row of the modulation that belongs to each row."""
        return self.index // self.tokens if self.groups is None else self.groups.flatten()[self.index]

    @property
    def uniform(self) -> int | None:
        """How many rows every sample keeps, None where that differs."""
        first = self.counts[0] if self.counts else None
        return first if len(self.counts) == 1 or all(count == first for count in self.counts) else None


@dataclass(slots=True)
class Seqlens:
    """Where each sample's queries and keys lie, as in varlen flash-attention."""

    cu_seqlens_q: Tensor
    """[B+1] int32; sample b owns rows cu_seqlens[b]:cu_seqlens[b+1]."""
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    key_lengths: Tensor | None = None
    """[B] int32: only the first ones of a sample's keys count (padded text)."""


@dataclass(slots=True)
class Nested:
    """Two nested sets of rows of each sample for `two_bin_attention`: the small set is the first rows of the
    large one."""

    cu_seqlens_large: Tensor
    """[B+1] int32, cumulative counts of the T rows."""
    cu_seqlens_small: Tensor
    max_seqlen_large: int
    max_seqlen_small: int
    small: int
    """S."""


@dataclass(slots=True)
class Rescale:
    """What the factor score_scale * sigmoid(logit) multiplies: `mode` as in `scatter_rescale`."""

    mode: str = "mlp"
    score_scale: float = 1.0


@dataclass(slots=True)
class RowNorm:
    """The norm of rows: of a branch before its gate, or before a product.

    Example:
        >>> norm = RowNorm("rms", torch.ones(D))
    """

    kind: str = "rms"
    """"rms" or "layer"."""
    weight: Tensor | None = None
    """[D]; None: 1."""
    bias: Tensor | None = None
    """[D]; None: 0."""
    eps: float = 1e-6

    def __call__(self, branch: Tensor) -> Tensor:
        """branch [T, D] -> [T, D], in at least fp32 and rounded once."""
        dtype = torch.promote_types(branch.dtype, torch.float32)
        weight, bias = (None if t is None else t.to(dtype) for t in (self.weight, self.bias))
        if self.kind == "layer":
            normed = F.layer_norm(branch.to(dtype), branch.shape[-1:], weight, bias, self.eps)
        else:
            normed = F.rms_norm(branch.to(dtype), branch.shape[-1:], weight, self.eps)
            normed = normed if bias is None else normed + bias
        return normed.to(branch.dtype)


@dataclass(slots=True)
class Finish:
    """What finishes the kept rows of x and puts them back: the arguments of `scatter_rescale` and, with two
    bins among `rows`, of `two_bin_blend`."""

    x: Tensor
    """[B, N, D]."""
    rows: PackedRows
    hidden: Tensor
    """The residual stream of the kept rows [T, D]; of both bins [T + S, D]."""
    branch: Tensor
    """The MLP's output [T, D], or what its second product is given [T, F] where a kernel multiplies too."""
    gate: Tensor
    """[B, D], with groups among the rows [G, D], any float dtype."""
    logits: Tensor
    """[B, N]."""
    rescale: Rescale
    norm: RowNorm | None = None
    """Of the branch, before its gate."""


@dataclass(slots=True)
class HeadNorm:
    """The norms of query and key, each of every head or, across heads, of all its channels together.

    Example:
        >>> norm = HeadNorm("rms", torch.ones(D // H), torch.ones(D // H))
    """

    kind: str = "rms"
    """"rms" or "layer"."""
    query_weight: Tensor | None = None
    key_weight: Tensor | None = None
    """[d], across heads [H d]; None: 1."""
    query_bias: Tensor | None = None
    key_bias: Tensor | None = None
    """The same; None: 0."""
    eps: float = 1e-6
    """Of both norms."""
    across_heads: bool = False
    """Whether all channels of a row are normed together."""


@dataclass(slots=True)
class Rope:
    """Rotation of query and key by the place of their token: row n of the table is that of token n.

    Example:
        >>> angle = torch.rand(1, N, 1, D // H // 2)  # one table for all samples and heads
        >>> rope = Rope(angle.cos(), angle.sin())
    """

    cos: Tensor
    sin: Tensor
    """[1 or B, N, 1 or H, d/2], or fewer columns: those of the leading channels, the others stay."""
    halves: bool = False
    """Whether channel i turns with i + d/2, and not 2i with 2i + 1."""
    second: tuple[Tensor, Tensor] | None = None
    """cos and sin of the second channel of each pair, where they are not those of the first (ERNIE-Image)."""
    dtype: torch.dtype | None = None
    """To which turned values are rounded before they are as they came."""


@dataclass(slots=True)
class Heads:
    """Query, key and value as their products leave them."""

    query: Tensor
    """[T, H d], with any stride between rows."""
    key: Tensor
    """[T, h d]: key and value may have fewer heads."""
    value: Tensor
    heads: int
    kv_heads: int

    @property
    def width(self) -> int:
        """d."""
        return self.query.shape[1] // self.heads


@dataclass(slots=True)
class Linear:
    """A product by raw weights, which are the whole truth: kernels may read them.

    weight [F, D]; bias [F] or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """rows [T, D] -> [T, F]."""
        return F.linear(rows, self.weight, self.bias)


Product = Linear | Callable[[Tensor], Tensor]
"""A product on packed rows: raw weights, or whatever a LoRA'd, quantised or hooked module computes."""


@dataclass(frozen=True, slots=True)
class Activation:
    """What an MLP has between its products: act(gate), or act(gate) * value.

    Example:
        >>> swiglu = Activation("silu", gate="first")
    """

    kind: str = "gelu_tanh"
    """"gelu_tanh", "gelu" or "silu"."""
    gate: str | None = None
    """"first" or "last": the half of what fc1 gives that is the gate; the other one is the value. None: all
    is the gate, and there is no value."""

    def parts(self, *pre: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gate and value [T, F], of what fc1 gives: [T, F], [T, 2F], or both halves."""
        if self.gate is None:
            return *pre, None
        first, last = pre if len(pre) == 2 else pre[0].chunk(2, dim=-1)
        return (first, last) if self.gate == "first" else (last, first)


@dataclass(slots=True)
class Gated:
    """The arguments of `activation`: act(gate), times value, times the router's score of the row."""

    gate: Tensor
    """[T, F], with any stride between rows."""
    value: Tensor | None = None
    """The same; None: 1."""
    kind: str = "gelu_tanh"
    """As of `Activation`."""
    index: Tensor | None = None
    """[T] int64: rows of the flattened [B*N]."""
    logits: Tensor | None = None
    """[B, N]; None: no scores."""
    score_scale: float = 1.0


@dataclass(slots=True)
class Run:
    """How the operators of one call of a block run.

    direct is the way without autograd: launchers are called as they are, products share a buffer and rows are
    changed in place. The other way goes through `torch.ops.diffratio`, which autograd, autocast and
    compilers see."""

    rows: str
    """Backend of the row steps."""
    others: str
    """"triton" or "reference" where that was asked for, else "auto": for attention and products."""
    attention: str
    """Backend of attention among kept rows, or "auto"."""
    direct: bool
    buffer: Tensor | None = None
    """What products write into; on the CPU fresh pages cost percents of a block."""
