"""A routed block by its own modules, between our routing, gather + adaLN and scatter."""

from __future__ import annotations

import torch
from torch import Tensor

from diffratio_kernels import adaln, gather_adaln, scatter_rescale

from .integrations import BlockInputs
from .state import LayerState


def through_modules(
    state: LayerState, inputs: BlockInputs, keep: list[int], index: Tensor, logits: Tensor, options: dict
) -> Tensor:
    """F(x, keep) on the rows `index` [T], keep[b] of each sample; options: rescale and score_scale."""
    block, x = state.block, inputs.x
    shift1, scale1, gate1, shift2, scale2, gate2 = inputs.modulation.unbind(1)
    rows, normed = gather_adaln(x, index, shift1, scale1, inputs.eps)

    def branches(rows, normed, index, inputs, gate1):
        """Packed rows of samples that keep equally many: their residual stream and MLP output."""
        shape = (inputs.x.shape[0], -1)
        attended = state.spec.self_attention(block, normed.unflatten(0, shape), inputs)
        hidden = rows.unflatten(0, shape) + gate1[:, None] * attended
        crossed = state.spec.cross_attention(block, hidden, inputs)
        hidden = (hidden if crossed is None else hidden + crossed).to(x.dtype)
        normed = adaln(hidden.flatten(0, 1), index, x.shape[1], shift2, scale2, inputs.mlp_eps)
        branch = state.spec.mlp(block, normed.unflatten(0, shape), inputs).to(x.dtype)
        return hidden.flatten(0, 1), branch.flatten(0, 1)

    if all(k == keep[0] for k in keep):
        hidden, branch = branches(rows, normed, index, inputs, gate1)
    else:
        hidden, branch = _by_kept_count(branches, rows, normed, index, inputs, gate1, keep)
    return scatter_rescale(x, index, hidden, branch, gate2, logits, **options)


def _by_kept_count(branches, rows, normed, index, inputs: BlockInputs, gate1, keep) -> tuple[Tensor, Tensor]:
    """Modules want rectangular batches: run the samples of each kept count together, then reorder."""
    rows, normed, index = rows.split(keep), normed.split(keep), index.split(keep)
    done = {}
    for k in sorted(set(keep) - {0}):
        samples = [b for b in range(len(keep)) if keep[b] == k]
        group = [torch.cat([of[b] for b in samples]) for of in (rows, normed, index)]
        hidden, branch = branches(*group, inputs.select(samples), gate1[samples])
        done.update(zip(samples, zip(hidden.split(k), branch.split(k), strict=True), strict=True))
    order = sorted(done)
    return torch.cat([done[b][0] for b in order]), torch.cat([done[b][1] for b in order])
