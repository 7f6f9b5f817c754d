"""The routed block: F(x, k) on the kept rows, for every block that is bound to a `Call` (paper section 3.2).

x [B, N, D] ---- route ----> index [T], logits [B, N]
|  gather_adaln: rows at the index, norm, shift1, scale1
hidden, normed [T, D] -- project --> query, key, value [T, H, d] -- attention among each sample's rows --> out
|  + gate1 * out                        (and those of the text, where it is a stream of the block: joint.py)
hidden [T, D] -- attention to the text, where there is one --> +
|  adaln: norm, shift2, scale2
normed [T, D] -- fc1, GELU, fc2 --> branch [T, D]
|  scatter_rescale: hidden + score * gate2 * branch (or as `rescale` says), into a copy of x
out [B, N, D]: rows that are not kept are those of x, bit by bit
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.adaln.op import run_adaln, run_gather_adaln
from ..ops.attention.op import run_attention
from ..ops.gate_residual.op import run_gate_residual
from ..ops.mlp.op import run_mlp, run_mlp_takes
from ..ops.route.reference import accumulation_dtype, constant_cu_seqlens, equal_cu_seqlens
from ..ops.scatter_rescale.op import run_scatter_rescale
from ..types import Finish, Linear, PackedRows, Product, Rescale, RowNorm, Run, Seqlens
from . import products
from .joint import attend, begin, branch_of, end, second_attention, with_norm
from .parallel import inner_rows
from .stream import (
    Branch,
    Call,
    CrossAttention,
    Exchange,
    Mlp,
    Parallel,
    SecondAttention,
    SelfAttention,
    Stream,
)


def routed(call: Call, rows: PackedRows, logits: Tensor, rescale: Rescale, run: Run) -> Any:
    """What the block's forward returns, computed on `rows` alone; other rows of the tokens come back
    bit-equal.

    Args:
        call: the block's parts and inputs.
        rows: of `run_route`, with counts and cu_seqlens; with a layout of `with_pinned`.
        logits: [B, N], of the router.
        rescale: what the router's score multiplies.
        run: how the steps run.
    """
    image = call.image
    if not any(rows.counts) and call.one_stream:
        return call.output(image.tokens.clone(memory_format=torch.contiguous_format), None)
    if image.groups is not None:
        rows = replace(rows, groups=image.groups)
    modulation = image.modulation.float() if run.rows == "cuda" else image.modulation  # one cast, not six
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
    ours = isinstance(image.attention, SelfAttention)
    text, of_text = None if call.text is None else begin(run, call.text), None
    own = image.attention
    second = isinstance(call.after_attention, SecondAttention)
    joint = text is not None or (ours and (second or not own.bare))

    fusible = ours and image.attention_norm is None and image.groups is None
    fusible = fusible and call.beside_attention is None
    out = image.attention.out if fusible else None
    joined = products.fuses(run, "linear_gate_residual", image.tokens, rows.index.shape[0], out)
    hidden, normed = run_gather_adaln(
        run, image.tokens, rows, shift1, scale1, image.eps, image.norm, keep_rows=not joined
    )
    first = normed if image.mlp_reads_input else None
    beside_mlp = normed if isinstance(image.mlp, Parallel) else None
    if run.direct and run.rows == "cpu" and not joint:
        run.buffer = normed.new_empty(normed.shape[0] * _widest(call))
    if joint:
        attended, behind, of_text = attend(run, image, normed, rows, text)
    elif ours:
        query, key, value = products.project(run, normed, image.attention)
        normed = None  # its memory is attention's
        attended = run_attention(run, run.attention, query, key, value, among(rows))
        del query, key, value
    else:
        attended = called("attention", image.attention, normed, rows)
    if isinstance(image.mlp, Parallel):
        if call.beside_attention is not None:
            attended = attended + called("beside_attention", call.beside_attention, attended, rows)
        inputs = behind if image.mlp.columns else beside_mlp
        given = Finish(image.tokens, rows, hidden, inputs, gate1, logits, rescale)
        return call.output(_finish_parallel(run, image.mlp, given, attended), None)
    normed = None
    if fusible:
        hidden = _add_product(run, hidden, attended, out, gate1, rows)
    else:
        norm = None
        if ours:
            out = image.attention.out
            attended, norm = branch_of(run, attended, out, image.attention_norm, hidden.dtype)
        hidden = run_gate_residual(run, hidden, attended, gate1, rows, norm)
    if call.beside_attention is not None:
        added = called("beside_attention", call.beside_attention, attended, rows)
        hidden = run_gate_residual(run, hidden, added, None, rows)
    del attended

    between, beside = call.after_attention, None
    if isinstance(between, CrossAttention):
        attended = cross_attend(run, hidden, rows, between)
        hidden = _own(run, hidden) if between.called else hidden
        hidden = _add_product(run, hidden, attended, between.out, None, rows)
        del attended
    elif isinstance(between, Exchange):
        hidden, beside = between.call(run, hidden, rows)
    elif between is not None:
        hidden = _added(run, call, hidden, rows)
    if run.direct and run.rows == "cpu" and joint:  # not before: attention keeps query, key and value apart
        run.buffer = hidden.new_empty(hidden.shape[0] * _widest(call))
    if first is None:
        first = run_adaln(run, hidden, rows, shift2, scale2, image.mlp_eps, image.norm)
    if not image.adds_attention:
        hidden = image.tokens.flatten(0, 1)[rows.index]
    finished = _finish(run, image, rows, hidden, first, gate2, (logits, rescale))
    run.buffer = None  # which has room for the rows of the image
    if call.text is not None:
        beside = call.text.tokens if text is None else end(run, text, of_text)
    return call.output(finished, beside)


def _added(run: Run, call: Call, hidden: Tensor, rows: PackedRows) -> Tensor:
    """hidden [T, D] and what a second attention, or a part that is not known, adds to it."""
    between = call.after_attention
    if isinstance(between, SecondAttention):
        added = second_attention(run, call.image.tokens, rows, between, call.image.eps)
        return run_gate_residual(run, hidden, added, None, rows)
    added = called("after_attention", between, hidden, rows)
    return run_gate_residual(run, _own(run, hidden), added, None, rows)


def _add_product(
    run: Run, hidden: Tensor, inputs: Tensor, linear: Product, gate: Tensor | None, rows: PackedRows
) -> Tensor:
    """hidden + gate * linear(inputs) [T, D], without a gate hidden + linear(inputs)."""
    if products.fuses(run, "linear_gate_residual", hidden, inputs.shape[0], linear):
        from ..ops.fused_linear.gate_residual import linear_gate_residual

        return linear_gate_residual(hidden, inputs, linear, gate, rows, in_place=hidden.dim() == 2)
    branch = as_rows("out", products.product(run, inputs, linear), *hidden.shape)
    return run_gate_residual(run, hidden, branch, gate, rows)


def among(rows: PackedRows) -> Seqlens:
    """Attention of packed rows among themselves."""
    longest = max(rows.counts)
    return Seqlens(rows.cu_seqlens, rows.cu_seqlens, longest, longest)


def cross_attend(run: Run, hidden: Tensor, rows: PackedRows, cross: CrossAttention) -> Tensor:
    """hidden [T, D] -> its attention to the text [T, D], before `out`."""
    samples, length = cross.keys_values.shape[:2]
    query = products.product(run, _normed(run, hidden, rows, cross.norm, samples), cross.query)
    query = _normed(run, query, rows, cross.query_norm, samples)
    heads, width = cross.heads, query.shape[1] // cross.heads
    query, keys_values = query.view(-1, heads, width), cross.keys_values
    keys_values = keys_values if keys_values.dtype == query.dtype else keys_values.to(query.dtype)
    keys_values = keys_values.reshape(samples * length, 2, heads, width)
    if run.direct:  # where nothing is compiled for any number of samples
        cu_seqlens_k = constant_cu_seqlens(samples, length, query)
    else:
        cu_seqlens_k = equal_cu_seqlens(samples, length, query.device)
    seqlens = Seqlens(rows.cu_seqlens, cu_seqlens_k, max(rows.counts), length, cross.lengths)
    attended = run_attention(run, run.others, query, *keys_values.unbind(1), seqlens)
    for other in cross.others:
        length = other.shape[1]
        keys_values = other.to(query.dtype).reshape(samples * length, 2, heads, width)
        cu_seqlens_k = equal_cu_seqlens(samples, length, query.device)
        seqlens = Seqlens(rows.cu_seqlens, cu_seqlens_k, max(rows.counts), length)
        attended = attended + run_attention(run, run.others, query, *keys_values.unbind(1), seqlens)
    return attended


def _normed(run: Run, x: Tensor, rows: PackedRows, norm, samples: int) -> Tensor:
    """norm(x) [T, D] of so many samples, as a modulation that all of them share."""
    if not isinstance(norm, RowNorm):
        return x if norm is None else norm(x)
    weight, bias, dtype = norm.weight, norm.bias, accumulation_dtype(x.dtype)
    scale = x.new_zeros(x.shape[1], dtype=dtype) if weight is None else weight.to(dtype) - 1
    shift = torch.zeros_like(scale) if bias is None else bias.to(dtype)
    shift, scale = (vector.expand(samples, -1) for vector in (shift, scale))
    return run_adaln(run, x, replace(rows, groups=None), shift, scale, norm.eps, norm.kind)


def called(name: str, part: Branch, inputs: Tensor, rows: PackedRows) -> Tensor:
    """What a part that is not known gives for its rows [T, D]; it is not asked where there are none."""
    if not any(rows.counts):
        return inputs
    value = part(inputs) if isinstance(part, nn.Module) else part(inputs, rows)
    return as_rows(name, value, *inputs.shape)


def as_rows(name: str, value: Tensor, count: int, width: int) -> Tensor:
    """`value`, if it is [count, width]: kernels do not look, and torch would broadcast."""
    if not isinstance(value, Tensor) or value.shape != (count, width):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} of a Call must return [T, D] = [{count}, {width}], got {got}")
    return value


def _own(run: Run, hidden: Tensor) -> Tensor:
    """Rows that may be changed in place: a module was given `hidden`, and a hook of it may have kept them."""
    return hidden.clone() if run.direct else hidden


def _widest(call: Call) -> int:
    """Columns of the widest product into the shared buffer."""
    image, cross, columns = call.image, call.after_attention, 0
    if isinstance(image.attention, SelfAttention):
        parts = image.attention.project
        for part in parts if isinstance(parts, tuple) else (parts,):
            if isinstance(part, Linear):
                columns += part.weight.shape[0]
    if isinstance(image.mlp, Mlp):
        fc1 = image.mlp.fc1 if isinstance(image.mlp.fc1, tuple) else (image.mlp.fc1,)
        columns = max(columns, sum(part.weight.shape[0] for part in fc1 if isinstance(part, Linear)))
    if isinstance(cross, CrossAttention) and isinstance(cross.query, Linear):
        columns = max(columns, cross.query.weight.shape[0])
    return max(columns, image.tokens.shape[2])


def _finish(
    run: Run, image: Stream, rows: PackedRows, hidden: Tensor, normed: Tensor, gate: Tensor, scores
) -> Tensor:
    """The MLP [T, D] -> [T, D], and the finished rows in a copy of the tokens [B, N, D]."""
    x, mlp = image.tokens, image.mlp
    if not isinstance(mlp, Mlp):
        branch = called("mlp", mlp, normed, rows)
    elif not run.direct and run_mlp_takes(run, normed, mlp.fc1, mlp.fc2, mlp.activation):
        branch = run_mlp(normed, mlp.fc1, mlp.fc2, mlp.activation)
    elif not run.direct:
        branch = mlp.fc2(products.inner_of(run, normed, mlp))
    else:
        inner = products.inner_of(run, normed, mlp)
        fusible = image.mlp_norm is None and image.groups is None
        if fusible and products.fuses(run, "linear_scatter", inner, inner.shape[0], mlp.fc2):
            from ..ops.fused_linear.scatter import linear_scatter

            return linear_scatter(Finish(x, rows, hidden, inner, gate, *scores), mlp.fc2)
        # a hook of fc1 may have kept what it was given
        own = isinstance(mlp.fc1, Linear) or products.raw_fc1(mlp)
        branch = products.product(run, inner, mlp.fc2, out=normed if own else None)
        del inner
        run.buffer = None
    as_rows("mlp", branch, *hidden.shape)
    branch, norm = with_norm(branch, image.mlp_norm)
    return run_scatter_rescale(run, x, rows, hidden, branch, gate, scores, norm)


def _finish_parallel(run: Run, mlp: Parallel, given: Finish, attended: Tensor) -> Tensor:
    """One product out of attention and MLP, whose inputs stand in `given.branch`."""
    rows, scores = given.rows, (given.logits, given.rescale)
    both, rescale = inner_rows(run, mlp, given.branch, rows, scores, attended)
    branch = as_rows("Parallel.out", products.product(run, both, mlp.out), *given.hidden.shape)
    scores = given.logits, rescale
    return run_scatter_rescale(run, given.x, rows, given.hidden, branch, given.gate, scores)
