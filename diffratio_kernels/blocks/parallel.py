"""The MLP beside the attention: its rows [T, F] come before the product out of both, [T, D + F] -> [T, D].

Where the score multiplies the MLP alone it multiplies these rows, by `activation` in the pass that makes
them."""

import torch
from torch import Tensor

from ..ops.activation.op import run_activation
from ..types import Gated, PackedRows, Rescale, Run
from .products import product
from .stream import Parallel


def inner_rows(
    run: Run, mlp: Parallel, inputs: Tensor, rows: PackedRows, scores, attended: Tensor | None = None
) -> tuple[Tensor, Rescale]:
    """The MLP's rows before `out`, and what the score multiplies besides.

    Args:
        run: how the steps run.
        mlp: of the block.
        inputs: what attention reads [T, D], or the rest of a joined projection.
        rows: which rows these are.
        scores: logits [B, N] of the router, and what its score multiplies.
        attended: [T, D] to put in front: [T, D + F]; None: [T, F].
    """
    logits, rescale = scores
    alone = rescale.mode == "mlp"
    if mlp.activation is None:
        inner = mlp.inner(inputs)
        if alone:
            score = rescale.score_scale * logits.flatten()[rows.index].sigmoid()
            inner = (inner * score[:, None]).to(inner.dtype)
    else:
        pre = inputs if mlp.inner is None else product(run, inputs, mlp.inner)
        gate, value = mlp.activation.parts(pre)
        of_rows = (rows.index, logits, rescale.score_scale) if alone else ()
        given = Gated(gate, value, mlp.activation.kind, *of_rows)
        if attended is not None and run.direct and attended.dtype == gate.dtype:
            width = attended.shape[1]
            both = attended.new_empty(attended.shape[0], width + gate.shape[1])
            both[:, :width] = attended
            run_activation(run, given, both[:, width:])
            return both, Rescale("none") if alone else rescale
        inner = run_activation(run, given)
    if attended is not None:
        inner = torch.cat([attended, inner.to(attended.dtype)], dim=-1)
    return inner, Rescale("none") if alone else rescale
