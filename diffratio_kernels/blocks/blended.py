"""The end of a block in two bins: both bins' branches blended, finished and put back.

hidden [T + S, D], fc1's rows [T + S, F] --> two_bin_gelu --> [T, F] --> fc2 --> branch [T, D]
                        an MLP that is not known: its branches [T + S, D] --> blended --> branch [T, D]
    --> two_bin_blend: the blend of hidden, + score * gate * branch --> rows of a copy of x [B, N, D]
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .._autocast import autocast_is_on
from .._backends import kernels
from ..ops.route.reference import accumulation_dtype
from ..ops.two_bin_attention.two_passes import with_small
from ..ops.two_bin_gelu.reference import blend, branch_weight, places_of
from ..types import Activation, Bins, Finish, Linear, PackedRows, Rescale, Run
from .joint import Text
from .products import activated
from .recompute import recompute_in_backward
from .routed import as_rows
from .stream import Mlp, Stream


@dataclass(slots=True)
class End:
    """Rows of one stream until its MLP's last product."""

    hidden: Tensor
    """The residual stream [t, D]."""
    last: Tensor
    """What fc1 makes of it [t, F]; of an MLP that is not known its result [t, D]; of a `Parallel` one what
    attention gives [t, H d]."""


def finish(run: Run, stream: Stream, rows: PackedRows, end: End, gate: Tensor, scores) -> Tensor:
    """Both bins' rows finished, blended and put back: [B, N, D]."""
    branch = _blended_branch(run, stream, end.last, rows)
    hidden = end.hidden
    if not stream.adds_attention:
        hidden = with_small(stream.tokens.flatten(0, 1)[rows.index], places_of(rows.bins).small)
    return _blend(run, stream.tokens, rows, hidden, branch, gate, scores)


def finish_text(run: Run, text: Text, end: End | None, bins: Bins, logits: Tensor) -> Tensor:
    """The same of all rows of a text, which has no scores."""
    if end is None:
        return text.stream.tokens
    (samples, tokens), count = text.stream.tokens.shape[:2], text.rows.index.shape[0]
    places, counts = text.rows.cu_seqlens, [tokens] * samples
    bins = Bins(bins.weight_large, places, places, count, count, counts)
    rows = replace(text.rows, counts=counts, bins=bins, key_lengths=None)
    scores = logits.new_zeros(samples, tokens), Rescale("none")
    return finish(run, text.stream, rows, end, text.vectors[5], scores)


def finish_parallel(run: Run, image: Stream, rows: PackedRows, end: End, inner: Tensor, gate: Tensor, scores):
    """One product out of attention and MLP, whose inner rows [T, F] are the same in both bins."""
    out, bins = image.mlp.out, rows.bins
    wide, dtype, shape = accumulation_dtype(inner.dtype), end.hidden.dtype, image.tokens.shape
    if isinstance(out, Linear):  # once, on the blend
        omega = branch_weight(replace(bins, weight_large=bins.weight_large.to(wide)))
        parts = blend(end.last.to(wide), bins), omega * inner.to(wide)
        branch = F.linear(torch.cat(parts, dim=-1).to(dtype), out.weight)
        branch = branch if out.bias is None else _weigh_bias(branch, out.bias, 0, rows)
    else:
        both = torch.cat([end.last, with_small(inner, places_of(bins).small).to(end.last.dtype)], dim=-1)
        both = as_rows("Parallel.out", out(both), end.last.shape[0], shape[2])
        branch = blend(both.to(wide), bins).to(dtype)
    return _blend(run, image.tokens, rows, end.hidden, branch, gate, scores)


def lerp(large: Tensor, small: Tensor, weight: Tensor) -> Tensor:
    """small + w (large - small) [B, M, D]."""
    dtype = accumulation_dtype(large.dtype)
    weight = weight.to(dtype)[:, None, None]
    return torch.lerp(small.to(dtype), large.to(dtype), weight).to(large.dtype)


def _blended_branch(run: Run, stream: Stream, last: Tensor, rows: PackedRows) -> Tensor:
    """The MLP's output on the blend of both bins [T, D], its bias weighed as the rows are."""
    mlp, width, dtype = stream.mlp, stream.tokens.shape[2], stream.tokens.dtype
    bins, known = rows.bins, isinstance(stream.mlp, Mlp)
    raw = known and isinstance(mlp.fc2, Linear)
    if stream.mlp_norm is not None or not known or (not raw and mlp.fc2_bias is None):
        if known:
            inner = activated(run, *mlp.activation.parts(last), mlp.activation.kind)
            last = as_rows("Mlp.fc2", mlp.fc2(inner), last.shape[0], width)
        if stream.mlp_norm is not None:
            last = stream.mlp_norm(last)
        return blend(last.to(accumulation_dtype(last.dtype)), bins).to(dtype)

    def fc2(inner: Tensor) -> Tensor:
        return F.linear(inner, mlp.fc2.weight) if raw else mlp.fc2(inner)

    def again() -> Tensor:
        return _inner(run, mlp.activation, kept, replace(bins, weight_large=bins.weight_large.detach()))

    kept = last.detach()
    branch = recompute_in_backward(fc2, _inner(run, mlp.activation, last, bins), again).to(dtype)
    as_rows("Mlp.fc2", branch, rows.index.shape[0], width)
    bias = mlp.fc2.bias if raw else mlp.fc2_bias
    return branch if bias is None else _weigh_bias(branch, bias, 0 if raw else 1, rows)


def _inner(run: Run, activation: Activation, pre: Tensor, bins: Bins) -> Tensor:
    """What the MLP has before fc2, of both bins [T + S, F], blended [T, F]."""
    if activation != Activation():
        inner = activated(run, *activation.parts(pre), activation.kind)
        return blend(inner.to(accumulation_dtype(inner.dtype)), bins).to(inner.dtype)
    if run.direct:
        return kernels("two_bin_gelu", run.rows).two_bin_gelu(pre, bins)
    weights = bins.weight_large, bins.cu_seqlens_large, bins.cu_seqlens_small
    return torch.ops.diffratio.two_bin_gelu(pre, *weights, bins.rows, backend=run.rows)


def _weigh_bias(branch: Tensor, bias: Tensor, added: int, rows: PackedRows) -> Tensor:
    """fc2's bias counts once on small rows and w times on those that only the large bin keeps.

    `added` of it are there. With w near 0 what is left of 1 has lost digits, and its gradient too.
    """
    bins, places = rows.bins, places_of(rows.bins)
    weight = bins.weight_large.to(torch.promote_types(branch.dtype, torch.float32))
    missing = torch.where(places.only_large, (weight - added)[places.sample], 1 - added)
    missing, bias = missing.to(branch.dtype), bias.to(branch.dtype)
    if not autocast_is_on(branch.device):
        return torch.addr(branch, missing, bias)
    with torch.autocast(branch.device.type, enabled=False):  # which, on CUDA, would round all of branch
        return torch.addr(branch, missing, bias)


def _blend(run: Run, x: Tensor, rows: PackedRows, hidden: Tensor, branch: Tensor, gate: Tensor, scores):
    logits, rescale = scores
    if rows.groups is not None:  # the kernels know a gate of each sample
        branch, gate = (branch * gate[rows.owner]).to(branch.dtype), gate.new_ones(x.shape[0], x.shape[2])
    if run.direct:
        module = kernels("two_bin_blend", run.rows)
        return module.two_bin_blend(Finish(x, rows, hidden, branch, gate, logits, rescale))
    bins = rows.bins
    weights = bins.weight_large, bins.cu_seqlens_large, bins.cu_seqlens_small
    operands = x, rows.index, hidden, branch, gate, logits, *weights, rescale.mode, rescale.score_scale
    return torch.ops.diffratio.two_bin_blend(*operands, backend=run.rows)
