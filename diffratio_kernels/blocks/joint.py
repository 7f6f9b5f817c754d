"""Attention of a block that is more than query, key and value of one stream: norms, positions, a second
stream whose tokens are all kept, rows that are kept always.

image: normed [T, D] -- project, norms, rope --> query, key, value [T, H, d] \\
                                                                          joint rows, sample after sample:
text: normed [B*M, D] -- project, norms, rope --> [B*M, H, d] ---------- /  image rows, then text rows
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..ops.adaln.op import run_adaln, run_gather_adaln
from ..ops.attention.op import run_attention
from ..ops.gate_residual.op import run_gate_residual
from ..ops.qk_norm_rope.op import run_qk_norm_rope
from ..ops.qk_norm_rope.reference import placed, turned
from ..ops.route.cu_seqlens import cu_seqlens_for
from ..ops.route.reference import accumulation_dtype, equal_cu_seqlens, neutral_logit
from ..types import Heads, PackedRows, Product, Rope, RowNorm, Run, Seqlens
from . import products
from .stream import KeysValues, Layout, Norm, Parallel, SelfAttention, Stream


@dataclass(slots=True)
class Text:
    """A stream that is not routed, on its way through the block."""

    stream: Stream
    rows: PackedRows
    """All of them; of each sample those that count first."""
    vectors: tuple[Tensor, ...]
    hidden: Tensor
    normed: Tensor


def begin(run: Run, stream: Stream) -> Text | None:
    """All rows of a stream, and what its attention reads; None where there are none."""
    if not stream.tokens.shape[1]:
        return None
    x, valid = stream.tokens, stream.valid
    tokens, order, keys = x.shape[1], None, None
    if valid is not None:
        order, keys = valid.order, valid.lengths
    rows = PackedRows(_flattened(order, x), tokens, [tokens], _cu_seqlens([tokens], x), key_lengths=keys)
    rows.groups = stream.groups
    vectors = stream.modulation.unbind(1)
    hidden, normed = run_gather_adaln(run, x, rows, *vectors[:2], stream.eps, stream.norm)
    return Text(stream, rows, vectors, hidden, normed)


def end(run: Run, text: Text, attended: Tensor) -> Tensor:
    """The finished stream [B, M, D]; as it came where it ends at the attention."""
    stream, rows, hidden = text.stream, text.rows, text.hidden
    if stream.mlp is None:
        return stream.tokens
    _, _, gate1, shift2, scale2, gate2 = text.vectors
    branch, norm = branch_of(run, attended, stream.attention.out, stream.attention_norm, hidden.dtype)
    hidden = run_gate_residual(run, hidden, branch, gate1, rows, norm)
    if stream.mlp_reads_input:
        normed = text.normed
    else:
        normed = run_adaln(run, hidden, rows, shift2, scale2, stream.mlp_eps, stream.norm)
    if not stream.adds_attention:
        hidden = stream.tokens.flatten(0, 1)[rows.index]
    branch = products.mlp_branch(run, normed, stream.mlp, rows)
    branch, norm = with_norm(branch, stream.mlp_norm)
    hidden = run_gate_residual(run, hidden, branch.to(hidden.dtype), gate2, rows, norm)
    if stream.valid is not None:
        hidden = torch.empty_like(hidden).index_copy(0, rows.index, hidden)
    return hidden.view(stream.tokens.shape)


def branch_of(
    run: Run, attended: Tensor, out: Product, norm: Norm | RowNorm | None, dtype: torch.dtype
) -> tuple[Tensor, RowNorm | None]:
    """out(attended) [T, D], `with_norm`."""
    branch, norm = with_norm(products.product(run, attended, out), norm)
    return branch.to(dtype), norm


def with_norm(branch: Tensor, norm: Norm | RowNorm | None) -> tuple[Tensor, RowNorm | None]:
    """A branch by its norm, where that is a module; else as it is, and the norm that is left to the gate."""
    if norm is None or isinstance(norm, RowNorm):
        return branch, norm
    return norm(branch), None


def attend(run: Run, image: Stream, normed: Tensor, rows: PackedRows, text: Text | None):
    """Attention among the rows of the image and those of the text.

    Returns:
        What comes before `out` [T, H d], the rest of a joined projection (of a `Parallel` MLP), and the
        text's [B*M, H d] or None.
    """
    own, rest = image.attention, 0
    if own.merge is not None:
        normed, rows = own.merge(normed, rows)
    if isinstance(image.mlp, Parallel):
        rest = image.mlp.columns
    given, behind = heads_of(run, own, normed, rest)
    if text is None:
        joint = prepared(run, own, given, rows)
    elif rows.key_lengths is not None:
        raise ValueError("Layout: padding among pinned tokens beside a text stream is not supported")
    else:
        joint = _both(run, image, given, rows, text)
    attended, of_text = attend_joint(run, own, joint, rows, text)
    if own.gate is not None:
        attended = attended * products.product(run, normed, own.gate).sigmoid()
    return attended, behind, of_text


def attend_joint(run: Run, own: SelfAttention, joint: Tensor, rows: PackedRows, text: Text | None):
    """Attention of heads [R, H + 2h, d] of each sample's rows, behind them those of its text.

    Returns:
        Of the rows [T, H d] and of the text [B*M, H d] or None.
    """
    counts, keys, cu_seqlens = rows.counts, rows.key_lengths, rows.cu_seqlens
    if text is not None:
        counts = [n + text.rows.tokens for n in counts]
        cu_seqlens = cu_seqlens + text.rows.cu_seqlens
        if text.rows.key_lengths is not None:
            keys = text.rows.key_lengths + rows.cu_seqlens.diff()
    few = own.kv_heads or own.heads
    query, key, value = joint.split([own.heads, few, few], dim=1)
    seqlens = Seqlens(cu_seqlens, cu_seqlens, max(counts), max(counts), keys)
    if own.more is not None:
        key, value, seqlens = _with_more(own.more, key, value, counts, seqlens)
    attended = run_attention(run, run.attention, query, key, value, seqlens)
    if text is None:
        return attended, None
    return parted(attended, rows.counts, text.rows.counts)


def _with_more(more: KeysValues, key: Tensor, value: Tensor, counts: list[int], seqlens: Seqlens):
    """Keys and values of the rows with others behind those of each sample, and where they lie."""
    if seqlens.key_lengths is not None:
        raise ValueError("SelfAttention.more: padding among the rows beside it is not supported")
    samples, length = more.key.shape[:2]
    key, value = (
        interleave(of_rows, others.flatten(0, 1).to(of_rows.dtype), counts, [length])
        for of_rows, others in ((key, more.key), (value, more.value))
    )
    cu_seqlens = _cu_seqlens([n + length for n in counts], more.key, samples)
    keys = None if more.lengths is None else more.lengths + seqlens.cu_seqlens_q.diff()
    longest = seqlens.max_seqlen_k + length
    return key, value, Seqlens(seqlens.cu_seqlens_q, cu_seqlens, seqlens.max_seqlen_q, longest, keys)


def second_attention(run: Run, x: Tensor, rows: PackedRows, second, eps: float) -> Tensor:
    """The branch [T, D] of a `SecondAttention` on the kept rows of x [B, N, D], gated."""
    shift, scale, gate = second.modulation.unbind(1)
    _, normed = run_gather_adaln(run, x, rows, shift, scale, eps)
    alone = Stream(x, second.modulation, second.attention, None)
    attended, _, _ = attend(run, alone, normed, rows, None)
    branch, _ = branch_of(run, attended, second.attention.out, None, x.dtype)
    return run_gate_residual(run, torch.zeros_like(branch), branch, gate, rows)


def heads_of(run: Run, own: SelfAttention, normed: Tensor, rest: int) -> tuple[Heads, Tensor | None]:
    """query, key and value of rows, and `rest` more columns of a joined projection."""
    few, behind = own.kv_heads or own.heads, None
    if isinstance(own.project, tuple):
        query, key, value = (products.product(run, normed, part) for part in own.project)
    else:
        joined = products.product(run, normed, own.project)
        width = (joined.shape[-1] - rest) // (own.heads + 2 * few)
        sizes = own.heads * width, few * width, few * width, rest
        query, key, value, behind = joined.split(sizes, dim=-1)
    return Heads(query, key, value, own.heads, few), behind


def _both(run: Run, image: Stream, given: Heads, rows: PackedRows, text: Text) -> Tensor:
    """Prepared heads of each sample's rows of both streams [R, H + 2h, d]."""
    of_text, _ = heads_of(run, text.stream.attention, text.normed, 0)
    if run.direct:
        count = rows.index.shape[0] + text.rows.index.shape[0]
        joint = given.query.new_empty(count, given.heads + 2 * given.kv_heads, given.width)
        # row t of a sample has its own stream's rows before it, and of the other stream's samples
        prepared(run, image.attention, given, rows, joint, text.rows.cu_seqlens[:-1])
        prepared(run, text.stream.attention, of_text, text.rows, joint, rows.cu_seqlens[1:])
        return joint
    first = prepared(run, image.attention, given, rows)
    second = prepared(run, text.stream.attention, of_text, text.rows)
    return interleave(first, second.to(first.dtype), rows.counts, text.rows.counts)


def prepared(
    run: Run, own: SelfAttention, given: Heads, rows: PackedRows, out: Tensor | None = None, shift=None
) -> Tensor:
    """Query and key normed and turned, beside the value [T, H + 2h, d]: by one kernel where it knows the
    norms and the rotation. With `out` row t of sample s is written to row t + shift[s] of it."""
    norms, rope = own.norms, own.rope
    if isinstance(norms, tuple):
        given, norms = _normed_by_modules(own, given), None
    known = rope is None or (rope.second is None and rope.dtype is None)
    if known and own.key_scale is None:
        return run_qk_norm_rope(run, given, rows, norms, rope, out, shift)
    heads = run_qk_norm_rope(run, given, rows, norms, None)
    query, key, value = heads.split([given.heads, given.kv_heads, given.kv_heads], dim=1)
    if rope is not None:
        query, key = (rotated(rope, x, rows) for x in (query, key))
    if own.key_scale is not None:
        key = (key * at_places(own.key_scale, rows)[..., None]).to(key.dtype)
    heads = torch.cat([query, key, value], dim=1)
    return heads if out is None else placed(heads, rows, out, shift)


def _normed_by_modules(own: SelfAttention, given: Heads) -> Heads:
    """Query and key by the norms that a block has."""
    done = []
    of_each = zip(own.norms, (given.query, given.key), (given.heads, given.kv_heads), strict=True)
    for norm, x, heads in of_each:
        shape, x = x.shape, x if own.across_heads else x.unflatten(-1, (heads, -1))
        done.append(norm(x).to(given.value.dtype).reshape(shape))
    return replace(given, query=done[0], key=done[1])


def at_places(table: Tensor, rows: PackedRows) -> Tensor:
    """Of a table [1 or B, N, ...] what belongs to the rows' tokens [T, ...]."""
    places = rows.index % rows.tokens if table.shape[0] == 1 else rows.index
    return table.flatten(0, 1)[places]


def rotated(rope: Rope, x: Tensor, rows: PackedRows) -> Tensor:
    """Queries or keys [T, H, d] turned by the places of their tokens, in at least fp32."""
    return turned(x.to(accumulation_dtype(x.dtype)), rows, rope).to(rope.dtype or x.dtype).to(x.dtype)


def interleave(first: Tensor, second: Tensor, counts: list[int], counts_second: list[int]) -> Tensor:
    """Packed rows of two sets of each sample one after the other: [T1, ...], [T2, ...] -> [T1 + T2, ...]."""
    if not any(counts) or not any(counts_second):
        return first if any(counts) else second
    if len(set(counts)) == 1 and len(set(counts_second)) == 1:
        parts = first.unflatten(0, (-1, counts[0])), second.unflatten(0, (-1, counts_second[0]))
        return torch.cat(parts, dim=1).flatten(0, 1)
    batch = max(len(counts), len(counts_second))
    parts = first.split(_of_each(counts, batch)), second.split(_of_each(counts_second, batch))
    pairs = zip(*parts, strict=True)
    return torch.cat([part for pair in pairs for part in pair])


def parted(joint: Tensor, counts: list[int], counts_second: list[int]) -> tuple[Tensor, Tensor]:
    """`interleave` undone."""
    if not joint.shape[0]:
        return joint, joint
    if len(set(counts)) == 1 and len(set(counts_second)) == 1:
        both = joint.unflatten(0, (-1, counts[0] + counts_second[0]))
        return both[:, : counts[0]].flatten(0, 1), both[:, counts[0] :].flatten(0, 1)
    batch = max(len(counts), len(counts_second))
    pairs = zip(_of_each(counts, batch), _of_each(counts_second, batch), strict=True)
    parts = joint.split([size for pair in pairs for size in pair])
    return torch.cat(parts[::2]), torch.cat(parts[1::2])


def every_row(batch: int, tokens: int, device: torch.device) -> PackedRows:
    """All rows of x [B, N, D]."""
    index = torch.arange(batch * tokens, device=device)
    return PackedRows(index, tokens, [tokens] * batch, equal_cu_seqlens(batch, tokens, device))


def _of_each(counts: list[int], batch: int) -> list[int]:
    return counts if len(counts) == batch else counts * batch


def with_pinned(
    layout: Layout, selected: PackedRows, logits: Tensor, score_scale: float, *, pinned_first: bool = False
) -> tuple[PackedRows, Tensor]:
    """Rows of the whole stream of a selection among the tokens that are routed, and the logits of all.

    Args:
        layout: of the stream [B, N, D].
        selected: rows among the routed tokens [B, n] in the order of the layout.
        logits: [B, n], of them.
        score_scale: rows that are kept always get the logit that makes their factor 1.
        pinned_first: whether these come before the selected ones of each sample, and not behind.
    """
    order, (batch, n) = layout.order, logits.shape
    tokens = order.shape[1]
    inside = selected.index // n * tokens + order[:, :n].flatten()[selected.index]
    pinned = _pinned(layout)
    counts = [max(layout.pinned)] if len(set(layout.pinned)) == 1 else layout.pinned
    if pinned_first:
        index = interleave(pinned, inside, counts, selected.counts)
    else:
        index = interleave(inside, pinned, selected.counts, counts)
    both = zip(_of_each(selected.counts, batch), _of_each(layout.pinned, batch), strict=True)
    counts = [k + p for k, p in both]
    cu_seqlens = _cu_seqlens(counts, logits, batch)
    keys = layout.pinned_keys
    if keys is not None:
        padded = _cu_seqlens(layout.pinned, keys, batch).diff() - keys
        keys = cu_seqlens.diff() - padded
    neutral = neutral_logit(score_scale)
    if len(set(layout.routed)) > 1:  # behind a shorter sample's tokens stand some that are kept always
        sizes = _cu_seqlens(layout.routed, order).diff()
        behind = torch.arange(n, device=order.device) >= sizes[:, None]
        logits = logits.masked_fill(behind, neutral)
    scores = logits.new_full(order.shape, neutral).scatter(1, order[:, :n], logits)
    return PackedRows(index, tokens, counts, cu_seqlens, key_lengths=keys), scores


def _pinned(layout: Layout) -> Tensor:
    """Rows [P] of the flattened [B*N] that are kept always, sample after sample."""
    order = layout.order
    batch, tokens = order.shape
    flat = order + torch.arange(batch, device=order.device)[:, None] * tokens
    if len(set(layout.routed)) == 1 and len(set(layout.pinned)) == 1:
        return flat[:, layout.routed[0] : layout.routed[0] + layout.pinned[0]].flatten()
    spans = zip(flat, _of_each(layout.routed, batch), _of_each(layout.pinned, batch), strict=True)
    return torch.cat([row[n : n + p] for row, n, p in spans])


def _flattened(order: Tensor | None, x: Tensor) -> Tensor:
    """[B * n] rows of the flattened tokens in an order [B, n] of each sample."""
    batch, tokens = x.shape[:2]
    if order is None:
        return torch.arange(batch * tokens, device=x.device)
    return (order + torch.arange(batch, device=x.device)[:, None] * tokens).flatten()


def _cu_seqlens(counts: list[int], like: Tensor, batch: int | None = None) -> Tensor:
    """Cumulative counts of samples; one number is that of every sample."""
    if len(counts) == 1:
        return equal_cu_seqlens(like.shape[0] if batch is None else batch, counts[0], like.device)
    return cu_seqlens_for(counts, like)
