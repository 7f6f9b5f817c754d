"""Attention of both bins of a block: heads once, on the large set.

image: normed [T, D] -- project, norms, rope --> [T, H + 2h, d] -- \\   of each sample, in both sets:
text: normed [B*M, D] -- project, norms, rope --> [B*M, H + 2h, d] - /  text rows, then image rows
    --> two_bin_attention, where the small set is the first rows of the large one; where padding must come
        last, each bin by itself
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.adaln.op import run_adaln
from ..ops.two_bin_attention.op import run_two_bin_attention
from ..ops.two_bin_attention.two_passes import take_small, with_small
from ..types import Nested, PackedRows, Run
from . import products
from .joint import Text, attend_joint, heads_of, interleave, parted, prepared
from .recompute import recompute_in_backward
from .stream import Parallel, SelfAttention, Stream


@dataclass(slots=True)
class JointHeads:
    """What both bins of a block attend with."""

    own: SelfAttention
    image: Tensor
    """[T, H + 2h, d] of the large set, whose first rows of each sample are the small one."""
    text: Tensor | None
    """[B*M, H + 2h, d]."""
    behind: Tensor | None
    """[T, F]: the rest of a joined projection."""
    gate: Tensor | None
    """[T, H d]."""
    pinned: list[int] | None = None
    """How many of each sample's first rows are kept always, where not all of these count as keys."""


def joint_heads(
    run: Run, image: Stream, hidden: Tensor, normed: Tensor, rows: PackedRows, vectors, text: Text | None
) -> JointHeads:
    """Query, key and value of the large set and of the text.

    Args:
        run: how the steps run.
        image: the stream that is routed.
        hidden, normed: [T, D] of the large set.
        rows: the large set.
        vectors: shift and scale of the norm, as it was computed.
        text: of the block.
    """
    own = image.attention
    if own.bare and text is None and not isinstance(image.mlp, Parallel):
        return JointHeads(own, _projected(run, image, hidden, normed, rows, vectors), None, None, None)
    given, behind = heads_of(run, own, normed, image.mlp.columns if isinstance(image.mlp, Parallel) else 0)
    of_image, of_text = prepared(run, own, given, rows), None
    if text is not None:
        given, _ = heads_of(run, text.stream.attention, text.normed, 0)
        of_text = prepared(run, text.stream.attention, given, text.rows).to(of_image.dtype)
    gate = None if own.gate is None else products.product(run, normed, own.gate).sigmoid()
    return JointHeads(own, of_image, of_text, behind, gate)


def _projected(run: Run, image: Stream, hidden, normed, rows: PackedRows, vectors) -> Tensor:
    """[T, 3H, d] as it is projected."""
    parts = image.attention.project

    def joined(normed: Tensor) -> Tensor:
        if not isinstance(parts, tuple):
            return parts(normed)
        outputs = [part(normed) for part in parts]
        products.equal_width(t.shape[-1] for t in outputs)
        return torch.cat(outputs, dim=-1)

    def again() -> Tensor:
        return run_adaln(run, kept, rows, *vectors, image.eps, image.norm)

    kept = hidden.detach()
    return recompute_in_backward(joined, normed, again).unflatten(-1, (3 * image.attention.heads, -1))


def attend_both(
    run: Run, heads: JointHeads, large: PackedRows, small: PackedRows, at: Tensor, text: Text | None
) -> tuple[Tensor, Tensor | None]:
    """Attention of both bins, before `out`.

    Args:
        run: how the steps run.
        heads: of the large set.
        large, small: the rows of each bin, with counts and cu_seqlens.
        at: [S], the packed row of each small row.
        text: of the block.

    Returns:
        Of the image [T + S, H d], and of the text in both bins [2*B*M, H d] or None.
    """
    padded = large.key_lengths is not None or (text is not None and text.rows.key_lengths is not None)
    if padded or heads.own.more is not None:
        both = (attend_one(run, heads, large, None, text), attend_one(run, heads, small, at, text))
        of_image, of_text = zip(*both, strict=True)
        return torch.cat(of_image), None if text is None else torch.cat(of_text)
    joint, cu_seqlens, longest, count = heads.image, (large.cu_seqlens, small.cu_seqlens), 0, at.shape[0]
    if text is not None:
        joint = interleave(heads.text, joint, text.rows.counts, large.counts)
        cu_seqlens = [of_bin + text.rows.cu_seqlens for of_bin in cu_seqlens]
        longest, count = text.rows.tokens, count + heads.text.shape[0]
    few = heads.own.kv_heads or heads.own.heads
    query, key, value = joint.split([heads.own.heads, few, few], dim=1)
    nested = Nested(*cu_seqlens, max(large.counts) + longest, max(small.counts) + longest, count)
    attended = run_two_bin_attention(run, query, key, value, nested)
    of_text = None
    if text is not None:
        ends = zip(attended.split([joint.shape[0], count]), (large, small), strict=True)
        both = [parted(end, text.rows.counts, rows.counts) for end, rows in ends]
        of_text, attended = (torch.cat(parts) for parts in zip(*both, strict=True))
    return attended if heads.gate is None else attended * with_small(heads.gate, at), of_text


def attend_one(
    run: Run, heads: JointHeads, rows: PackedRows, at: Tensor | None, text: Text | None
) -> tuple[Tensor, Tensor | None]:
    """The same of one bin alone, whose rows are those at `at` of the large set; None: all."""
    joint = heads.image if at is None else take_small(heads.image, at)
    if text is None and not joint.shape[0]:
        return joint[:, : heads.own.heads].flatten(1), None
    if text is not None:
        joint = interleave(joint, heads.text, rows.counts, text.rows.counts)
    if rows.key_lengths is None:
        of_image, of_text = attend_joint(run, heads.own, joint, rows, text)
    else:  # keys that count come first: the pinned ones, whose last do not, go behind
        pinned, kept = heads.pinned, [n - p for n, p in zip(rows.counts, heads.pinned, strict=True)]
        of_pinned, of_kept = parted(joint, pinned, kept)
        joint = interleave(of_kept, of_pinned, kept, pinned)
        of_image, of_text = attend_joint(run, heads.own, joint, rows, text)
        of_kept, of_pinned = parted(of_image, kept, pinned)
        of_image = interleave(of_pinned, of_kept, pinned, kept)
    if heads.gate is not None:
        of_image = of_image * (heads.gate if at is None else take_small(heads.gate, at))
    return of_image, of_text
