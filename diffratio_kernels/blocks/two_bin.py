"""Two bins of one routed block as one computation: w F(x, k_large) + (1 - w) F(x, k_small) (paper section
3.3).

Routing, projections and attention run once, on the large set; output, cross-attention, adaLN and fc1 once, on
the rows of both bins one after the other; fc2 once, on the blend, where it is known to be affine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._backends import kernels
from ..ops.adaln.op import run_adaln, run_gather_adaln
from ..ops.attention.op import run_attention
from ..ops.gate_residual.op import run_gate_residual
from ..ops.route.cu_seqlens import cu_seqlens_for
from ..ops.route.reference import accumulation_dtype
from ..ops.two_bin_attention.op import run_two_bin_attention
from ..ops.two_bin_attention.two_passes import take_small, with_small
from ..ops.two_bin_gelu.reference import blend, small_rows
from ..types import Bins, Finish, Linear, Nested, PackedRows, Rescale, Run
from .products import equal_width
from .recompute import recompute_in_backward
from .routed import among, as_rows, called, cross_attend
from .stream import Call, CrossAttention, Mlp, SelfAttention, Stream


@dataclass(slots=True)
class _Part:
    """Packed rows [t, .] of one bin, or of both as those of 2B samples, and what belongs to each sample."""

    rows: PackedRows
    gate1: Tensor
    shift2: Tensor
    scale2: Tensor
    after_attention: Any
    """As in `Call`."""
    alone: tuple[PackedRows, ...]
    """The rows of each bin as those of B samples."""


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
        rows: of `run_route` with both kept counts; each sample's small set comes first.
        bins: their weights, and the small counts.
        scores: logits [B, N] of the router, and what its score multiplies.
        run: how the steps run.
        forward_only: "small" or "large", a bin whose weight is 0 in every sample: it is computed for the
            gradient of the weights alone.
    """
    image, x, tokens = call.image, call.image.tokens, rows.tokens
    if not any(rows.counts):
        return call.output(x.clone(memory_format=torch.contiguous_format), None)
    modulation = image.modulation.float() if run.rows == "cuda" else image.modulation
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
    rows = replace(rows, cu_seqlens=bins.cu_seqlens_large, bins=bins)
    at = small_rows(bins)
    small = PackedRows(rows.index[at], tokens, bins.counts_small, bins.cu_seqlens_small)

    hidden, normed = run_gather_adaln(run, x, rows, shift1, scale1, image.eps)
    of_large = gate1, shift2, scale2, call.after_attention
    if forward_only == "none" or run.direct:
        attended = _attend_both(run, call, hidden, normed, rows, small, at, (shift1, scale1))
        part = _both(rows, small, *of_large)
        hidden, last = _until_fc1(run, call, with_small(hidden, at), attended, part)
    else:
        projected = _projected(run, call, hidden, normed, rows, (shift1, scale1))
        with _gradient(forward_only != "large"):
            part = _Part(rows, *of_large, (rows,))
            attended = _attend_one(run, call, projected, normed, rows)
            hidden_large, last_large = _until_fc1(run, call, hidden, attended, part)
        with _gradient(forward_only != "small"):
            part = _Part(small, *of_large, (small,))
            prefix = None if projected is None else [take_small(t, at) for t in projected]
            attended = _attend_one(run, call, prefix, take_small(normed, at), small)
            hidden_small, last_small = _until_fc1(run, call, take_small(hidden, at), attended, part)
        hidden, last = torch.cat([hidden_large, hidden_small]), torch.cat([last_large, last_small])
    branch = _blended_branch(run, image, last, rows)
    return call.output(_blend(run, x, rows, hidden, branch, gate2, scores), None)


def bins_of(weight_large: Tensor, counts_small: list[int], counts_large: list[int], like: Tensor) -> Bins:
    """Two bins' weights and cumulative counts, on the device of `like`."""
    large, small = (cu_seqlens_for(counts, like) for counts in (counts_large, counts_small))
    return Bins(weight_large, large, small, sum(counts_large), sum(counts_small), counts_small)


def _projected(run, call, hidden, normed, rows, vectors) -> list[Tensor] | None:
    """query, key and value [T, H, d]; None where attention is not ours."""
    image = call.image
    if not isinstance(image.attention, SelfAttention):
        return None

    def joined(normed: Tensor) -> Tensor:
        parts = image.attention.project
        if not isinstance(parts, tuple):
            return parts(normed)
        outputs = [part(normed) for part in parts]
        equal_width(t.shape[-1] for t in outputs)
        return torch.cat(outputs, dim=-1)

    def again() -> Tensor:
        return run_adaln(run, kept, rows, *vectors, image.eps)

    kept = hidden.detach()
    qkv = recompute_in_backward(joined, normed, again)
    return list(qkv.unflatten(-1, (3, image.attention.heads, -1)).unbind(1))


def _attend_both(run, call, hidden, normed, rows, small, at, vectors) -> Tensor:
    """Attention of both bins [T + S, D]: of ours before `out`, of a part that is not known its result."""
    projected = _projected(run, call, hidden, normed, rows, vectors)
    if projected is None:
        parts = ((normed, rows), (take_small(normed, at), small))
        return torch.cat([_attend_one(run, call, None, *part) for part in parts])
    bins, longest = rows.bins, (max(rows.counts), max(small.counts))
    nested = Nested(bins.cu_seqlens_large, bins.cu_seqlens_small, *longest, bins.small)
    return run_two_bin_attention(run, *projected, nested)


def _attend_one(run, call, projected, normed, rows) -> Tensor:
    """Attention among the rows of one bin [t, D]: one pass over both would have one backward for both."""
    if projected is None:
        return called("attention", call.image.attention, normed, rows)
    if sum(rows.counts) == 0:
        return projected[0].flatten(1)
    return run_attention(run, run.attention, *projected, among(rows))


def _until_fc1(run: Run, call: Call, hidden: Tensor, attended: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
    """The residual stream of packed rows after both attentions [t, D], and what fc1 makes of it [t, F]; of an
    MLP that is not known, its result [t, D]."""
    image, dtype, rows = call.image, hidden.dtype, part.rows
    ours = isinstance(image.attention, SelfAttention)
    branch = image.attention.out(attended) if ours else attended
    as_rows("attention", branch, *hidden.shape)
    hidden = run_gate_residual(run, hidden, branch, part.gate1, rows)
    cross = part.after_attention
    if isinstance(cross, CrossAttention):
        branch = as_rows("after_attention", cross.out(cross_attend(run, hidden, rows, cross)), *hidden.shape)
        hidden = (hidden + branch).to(dtype)
    elif cross is not None:
        ends = hidden.split([sum(one.counts) for one in part.alone])
        both = zip(ends, part.alone, strict=True)
        added = [called("after_attention", cross, end, one) for end, one in both]
        hidden = (hidden + torch.cat(added)).to(dtype)

    def again() -> Tensor:
        return run_adaln(run, kept, rows, part.shift2, part.scale2, image.mlp_eps)

    kept = hidden.detach()
    normed = run_adaln(run, hidden, rows, part.shift2, part.scale2, image.mlp_eps)
    if isinstance(image.mlp, Mlp):
        return hidden, recompute_in_backward(image.mlp.fc1, normed, again)
    return hidden, called("mlp", image.mlp, normed, rows)


def _blended_branch(run: Run, image: Stream, last: Tensor, rows: PackedRows) -> Tensor:
    """The MLP's output on the blend of both bins [T, D], its bias weighed as the rows are."""
    mlp, width, dtype = image.mlp, image.tokens.shape[2], image.tokens.dtype
    bins = rows.bins
    raw = isinstance(mlp, Mlp) and isinstance(mlp.fc2, Linear)
    if not raw and (not isinstance(mlp, Mlp) or mlp.fc2_bias is None):
        if isinstance(mlp, Mlp):
            last = as_rows("Mlp.fc2", mlp.fc2(F.gelu(last, approximate="tanh")), last.shape[0], width)
        return blend(last.to(accumulation_dtype(last.dtype)), bins).to(dtype)

    def fc2(inner: Tensor) -> Tensor:
        return F.linear(inner, mlp.fc2.weight) if raw else mlp.fc2(inner)

    def again() -> Tensor:
        return _gelu(run, kept, replace(bins, weight_large=bins.weight_large.detach()))

    kept = last.detach()
    branch = recompute_in_backward(fc2, _gelu(run, last, bins), again).to(dtype)
    as_rows("Mlp.fc2", branch, rows.index.shape[0], width)
    bias = mlp.fc2.bias if raw else mlp.fc2_bias
    return branch if bias is None else _weigh_bias(branch, bias, 0 if raw else 1, rows)


def _gelu(run: Run, pre: Tensor, bins: Bins) -> Tensor:
    if run.direct:
        return kernels("two_bin_gelu", run.rows).two_bin_gelu(pre, bins)
    weights = bins.weight_large, bins.cu_seqlens_large, bins.cu_seqlens_small
    return torch.ops.diffratio.two_bin_gelu(pre, *weights, bins.rows, backend=run.rows)


def _weigh_bias(branch: Tensor, bias: Tensor, added: int, rows: PackedRows) -> Tensor:
    """fc2's bias counts once on small rows and w times on those that only the large bin keeps.

    `added` of it are there. With w near 0 what is left of 1 has lost digits, and its gradient too.
    """
    index, bins = rows.index, rows.bins
    sample = index // rows.tokens
    position = torch.arange(index.shape[0], device=index.device) - bins.cu_seqlens_large[:-1][sample]
    only_large = position >= bins.cu_seqlens_small.diff()[sample]
    weight = bins.weight_large.to(torch.promote_types(branch.dtype, torch.float32))
    missing = torch.where(only_large, weight[sample] - added, 1 - added)
    device = "cpu" if branch.is_meta else branch.device.type
    with torch.autocast(device, enabled=False):  # which, on CUDA, would round all of branch
        return torch.addr(branch, missing.to(branch.dtype), bias.to(branch.dtype))


def _blend(run: Run, x: Tensor, rows: PackedRows, hidden: Tensor, branch: Tensor, gate: Tensor, scores):
    logits, rescale = scores
    if run.direct:
        module = kernels("two_bin_blend", run.rows)
        return module.two_bin_blend(Finish(x, rows, hidden, branch, gate, logits, rescale))
    bins = rows.bins
    weights = bins.weight_large, bins.cu_seqlens_large, bins.cu_seqlens_small
    operands = x, rows.index, hidden, branch, gate, logits, *weights, rescale.mode, rescale.score_scale
    return torch.ops.diffratio.two_bin_blend(*operands, backend=run.rows)


def _both(large: PackedRows, small: PackedRows, gate1, shift2, scale2, cross) -> _Part:
    """The rows of both bins as those of 2B samples: sample b of the small bin is sample B + b."""
    samples = len(large.counts)
    if isinstance(cross, CrossAttention):
        lengths = None if cross.lengths is None else cross.lengths.repeat(2)
        cross = replace(cross, keys_values=torch.cat([cross.keys_values, cross.keys_values]), lengths=lengths)
    rows = PackedRows(
        torch.cat([large.index, small.index + samples * large.tokens]),
        large.tokens,
        large.counts + small.counts,
        torch.cat([large.cu_seqlens, large.cu_seqlens[-1] + small.cu_seqlens[1:]]),
    )
    vectors = (torch.cat([t, t]) for t in (gate1, shift2, scale2))
    return _Part(rows, *vectors, cross, (large, small))


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
