"""Two bins of one routed block as one computation: w F(x, k_large) + (1 - w) F(x, k_small) (paper section
3.3).

Routing, projections and attention run once, on the large set; output, cross-attention, adaLN and fc1 once, on
the rows of both bins one after the other; fc2 once, on the blend, where it is known to be affine. A text
stream goes the same way: all of its rows are in both bins."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.adaln.op import run_adaln, run_gather_adaln
from ..ops.gate_residual.op import run_gate_residual
from ..ops.route.cu_seqlens import cu_seqlens_for
from ..ops.route.reference import constants_may_be_kept, cu_seqlens_of
from ..ops.two_bin_attention.two_passes import take_small, with_small
from ..ops.two_bin_gelu.reference import places_of
from ..types import Bins, PackedRows, Places, Rescale, Run
from .blended import End, finish, finish_parallel, finish_text, lerp
from .joint import Text, begin, branch_of, second_attention
from .nested import attend_both, attend_one, joint_heads
from .parallel import inner_rows
from .products import joined_fc1
from .recompute import recompute_in_backward
from .routed import as_rows, called, cross_attend
from .stream import Call, CrossAttention, Exchange, Mlp, Parallel, SecondAttention, SelfAttention, Stream


@dataclass(slots=True)
class _Part:
    """Packed rows [t, .] of one bin, or of both as those of 2B samples."""

    rows: PackedRows
    alone: tuple[PackedRows, ...]
    """The rows of each bin as those of B samples."""
    at: Tensor | None
    """[S]: the packed row of each small row; None of a text, all of whose rows are in both bins."""

    def of(self, large: Tensor) -> Tensor:
        """Of rows [T, ...] of the large set those of this part."""
        if len(self.alone) == 2:
            return with_small(large, self.at)
        return large if self.alone[0].bins is not None else take_small(large, self.at)

    def each(self, value: Tensor | None) -> Tensor | None:
        """What belongs to each of B samples [B, ...], for each sample of this part."""
        return value if value is None or len(self.alone) == 1 else torch.cat([value, value])


def two_bin(
    call: Call,
    rows: PackedRows,
    bins: Bins,
    scores: tuple[Tensor, Rescale],
    run: Run,
    forward_only: str = "none",
) -> Any:
    """What the block's forward returns for both bins, blended.

    Args:
        call: the block's parts and inputs.
        rows: of `run_route` with both kept counts; each sample's small set comes first, with a layout of
            `with_pinned` its pinned tokens.
        bins: their weights, and the small counts.
        scores: logits [B, N] of the router, and what its score multiplies.
        run: how the steps run.
        forward_only: "small" or "large", a bin whose weight is 0 in every sample: it is computed for the
            gradient of the weights alone.
    """
    image, x, tokens = call.image, call.image.tokens, rows.tokens
    if not any(rows.counts) and call.one_stream:
        return call.output(x.clone(memory_format=torch.contiguous_format), None)
    modulation = image.modulation.float() if run.rows == "cuda" else image.modulation
    vectors = modulation.unbind(1)
    at, groups, keys = places_of(bins).small, image.groups, rows.key_lengths
    large = PackedRows(
        rows.index, tokens, rows.counts, bins.cu_seqlens_large, rows.row_map, bins, keys, groups
    )
    small = PackedRows(rows.index[at], tokens, bins.counts_small, bins.cu_seqlens_small, groups=groups)

    hidden, normed = run_gather_adaln(run, x, large, *vectors[:2], image.eps, image.norm)
    text = None if call.text is None else begin(run, call.text)
    known = isinstance(image.attention, SelfAttention)
    heads = joint_heads(run, image, hidden, normed, large, vectors[:2], text) if known else None
    if large.key_lengths is not None and known:
        small.key_lengths = large.key_lengths - bins.cu_seqlens_large.diff() + bins.cu_seqlens_small.diff()
        heads.pinned = call.layout.pinned * (x.shape[0] // len(call.layout.pinned))
    given = hidden, normed, heads
    if forward_only == "none" or run.direct:
        part = _Part(_both(large, small, x.shape[0]), (large, small), at)
        of_image, of_text, beside = _until_fc1(run, call, part, modulation, given, text)
    else:
        with _gradient(forward_only != "large"):
            ends = [_until_fc1(run, call, _Part(large, (large,), at), modulation, given, text)]
        with _gradient(forward_only != "small"):
            ends.append(_until_fc1(run, call, _Part(small, (small,), at), modulation, given, text))
        of_image, of_text, beside = (_joined(parts) for parts in zip(*ends, strict=True))
    if isinstance(image.mlp, Parallel):
        inputs = heads.behind if image.mlp.columns else normed
        inner, rescale = inner_rows(run, image.mlp, inputs, large, scores)
        finished = finish_parallel(run, image, large, of_image, inner, vectors[2], (scores[0], rescale))
    else:
        finished = finish(run, image, large, of_image, vectors[5], scores)
    if beside is not None:
        beside = lerp(*beside.chunk(2), bins.weight_large)
    elif call.text is not None:
        beside = call.text.tokens if text is None else finish_text(run, text, of_text, bins, scores[0])
    return call.output(finished, beside)


def bins_of(weight_large: Tensor, counts_small: list[int], counts_large: list[int], like: Tensor) -> Bins:
    """Two bins' weights and cumulative counts, on the device of `like`."""
    rows, small = sum(counts_large), sum(counts_small)
    if not constants_may_be_kept(like):
        offsets = (cu_seqlens_for(counts, like) for counts in (counts_large, counts_small))
        return Bins(weight_large, *offsets, rows, small, counts_small)
    *offsets, places = _places(tuple(counts_large), tuple(counts_small), like.device)
    return Bins(weight_large, *offsets, rows, small, counts_small, places)


@lru_cache(maxsize=32)
def _places(large: tuple[int, ...], small: tuple[int, ...], device: torch.device):
    """Cumulative counts of both bins, and the places of their rows: to be read only."""
    with torch.inference_mode(False):
        offsets = [cu_seqlens_of(list(counts), torch.device("cpu")) for counts in (large, small)]
        places = places_of(Bins(torch.empty(len(large)), *offsets, sum(large), sum(small)))
        places = Places(*(t.to(device) for t in (places.small, places.sample, places.only_large)))
        return *(t.to(device) for t in offsets), places


def _until_fc1(run: Run, call: Call, part: _Part, modulation: Tensor, given, text: Text | None):
    """A part of the image until its MLP's last product; of the text; and what an `Exchange` gives beside.

    given: of the large set hidden and normed [T, D], and the heads of an attention that is known.
    """
    image, (hidden, normed, heads), large = call.image, given, len(part.alone) == 1 and part.alone[0].bins
    if heads is None:
        attended, of_text = _called("attention", image.attention, part.of(normed), part), None
    elif len(part.alone) == 2:
        attended, of_text = attend_both(run, heads, *part.alone, part.at, text)
    else:
        attended, of_text = attend_one(run, heads, part.alone[0], None if large else part.at, text)
    hidden = part.of(hidden)
    if isinstance(image.mlp, Parallel):
        if call.beside_attention is not None:
            attended = attended + _called("beside_attention", call.beside_attention, attended, part)
        return End(hidden, attended), None, None
    vectors = (modulation if image.groups is not None else part.each(modulation)).unbind(1)
    hidden, branch = _add_attention(run, image, hidden, attended, vectors[2], part.rows)
    if call.beside_attention is not None:
        added = _called("beside_attention", call.beside_attention, branch, part)
        hidden = run_gate_residual(run, hidden, added, None, part.rows)
    hidden, beside = _between(run, call, hidden, part)
    first = part.of(normed) if image.mlp_reads_input else None
    of_image = End(hidden, _last(run, image, hidden, first, vectors, part))
    if text is None or text.stream.mlp is None:
        return of_image, None, beside
    return of_image, _text_until_fc1(run, text, of_text, len(part.alone)), beside


def _text_until_fc1(run: Run, text: Text, attended: Tensor, bins: int) -> End:
    """All rows of the text in one bin or both, attended [bins*B*M, D]."""
    stream, rows = text.stream, text.rows
    part = _Part(rows, (rows,) * bins, None)
    vectors = text.vectors if stream.groups is not None else [part.each(vector) for vector in text.vectors]
    if bins == 2:
        part.rows = _both(rows, rows, stream.tokens.shape[0])
    hidden, _ = _add_attention(run, stream, part.each(text.hidden), attended, vectors[2], part.rows)
    first = part.each(text.normed) if stream.mlp_reads_input else None
    return End(hidden, _last(run, stream, hidden, first, vectors, part))


def _add_attention(
    run: Run, stream: Stream, hidden: Tensor, attended: Tensor, gate: Tensor, rows: PackedRows
):
    """The residual stream after attention [t, D], and the branch that was added."""
    branch, norm, own = attended, None, stream.attention
    if isinstance(own, SelfAttention):
        branch, norm = branch_of(run, attended, own.out, stream.attention_norm, hidden.dtype)
    as_rows("attention", branch, *hidden.shape)
    return run_gate_residual(run, hidden, branch, gate, rows, norm), branch


def _between(run: Run, call: Call, hidden: Tensor, part: _Part) -> tuple[Tensor, Tensor | None]:
    """The residual stream [t, D] before the second norm, and what an `Exchange` gives beside."""
    between, rows, dtype, width = call.after_attention, part.rows, hidden.dtype, hidden.shape
    if between is None:
        return hidden, None
    if isinstance(between, CrossAttention):
        others = tuple(part.each(other) for other in between.others)
        keys_values, lengths = part.each(between.keys_values), part.each(between.lengths)
        query, out, heads = between.query, between.out, between.heads
        norms = between.norm, between.query_norm
        cross = CrossAttention(query, out, heads, keys_values, lengths, others, *norms)
        branch = as_rows("after_attention", cross.out(cross_attend(run, hidden, rows, cross)), *width)
        return (hidden + branch).to(dtype), None
    if isinstance(between, Exchange):
        ends = hidden.split([sum(one.counts) for one in part.alone])
        done = [between.call(run, end, one) for end, one in zip(ends, part.alone, strict=True)]
        hidden, beside = (torch.cat(parts) for parts in zip(*done, strict=True))
        return hidden, beside
    if isinstance(between, SecondAttention):
        image = call.image
        bins = [one for one in part.alone if any(one.counts)]
        if not bins:
            return hidden, None
        added = [second_attention(run, image.tokens, one, between, image.eps) for one in bins]
        return run_gate_residual(run, hidden, torch.cat(added), None, rows), None
    return (hidden + _called("after_attention", between, hidden, part)).to(dtype), None


def _last(run: Run, stream: Stream, hidden: Tensor, first: Tensor | None, vectors, part: _Part) -> Tensor:
    """What fc1 makes of the residual stream, or an MLP that is not known.

    first: [t, D], what the MLP reads where that is not the residual stream.
    """
    shift2, scale2 = vectors[3:5]

    def again() -> Tensor:
        return run_adaln(run, kept, part.rows, shift2, scale2, stream.mlp_eps, stream.norm)

    kept, mlp = hidden.detach(), stream.mlp
    normed = first
    if first is None:
        normed = run_adaln(run, hidden, part.rows, shift2, scale2, stream.mlp_eps, stream.norm)
    if not isinstance(mlp, Mlp):
        return _called("mlp", mlp, normed, part)
    fc1 = joined_fc1(mlp)
    return recompute_in_backward(fc1, normed, again) if first is None else fc1(normed)


def _called(name: str, unknown, inputs: Tensor, part: _Part) -> Tensor:
    """A part that is not known: a module on all rows, others with the places of each bin's rows."""
    if isinstance(unknown, nn.Module):
        return called(name, unknown, inputs, part.rows)
    ends = inputs.split([one.index.shape[0] for one in part.alone])
    return torch.cat([called(name, unknown, end, one) for end, one in zip(ends, part.alone, strict=True)])


def _joined(parts):
    """Of two bins: one end, or tensor, after the other."""
    if isinstance(parts[0], End):
        return End(*(torch.cat([getattr(part, name) for part in parts]) for name in ("hidden", "last")))
    return None if parts[0] is None else torch.cat(parts)


def _both(large: PackedRows, small: PackedRows, samples: int) -> PackedRows:
    """The rows of both bins as those of 2B samples: sample b of the small bin is sample B + b."""
    return PackedRows(
        torch.cat([large.index, small.index + samples * large.tokens]),
        large.tokens,
        large.counts + small.counts if len(large.counts) == samples else large.counts,
        torch.cat([large.cu_seqlens, large.cu_seqlens[-1] + small.cu_seqlens[1:]]),
        groups=None if large.groups is None else torch.cat([large.groups, small.groups]),  # [2B, N]
    )


@contextmanager
def _gradient(wanted: bool) -> Iterator[None]:
    """Inside, the steps have a gradient if it is on and wanted.

    Without one they keep no casts of weights: in torch 2.10 autocast hands a cast that was made without a
    gradient to those who want one. Compiled graphs keep none."""
    without = torch.is_grad_enabled() and not wanted
    kept = without and not torch.compiler.is_compiling() and torch.is_autocast_cache_enabled()
    with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
        if kept:
            torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            if kept:
                torch.set_autocast_cache_enabled(True)
