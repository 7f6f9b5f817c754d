"""The training forward of a block that learns its ratio: both bins around it, blended (paper section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from diffratio_kernels import kept_tokens
from diffratio_kernels.modules.ratio_table import TableBins
from diffratio_kernels.ops.block_steps import steps_of
from diffratio_kernels.ops.two_bin_steps import two_bin_forward

from .integrations import BlockInputs
from .integrations.spec import hooked
from .state import LayerState, in_backward
from .through_modules import through_modules


def why_two_passes(state: LayerState) -> str | None:
    """Why a training pass calls the block's modules twice, None where one packed pass does for both bins."""
    reason = hooked(state.block.diffratio)
    return f"diffratio: {reason}" if reason else state.spec.why_not_linears(state.block)


@torch.compiler.disable
def two_bin_blocks(state: LayerState, inputs: BlockInputs, given: Tensor, options: dict) -> Tensor:
    """w F(x, k_large) + (1 - w) F(x, k_small) with w and both bins from the model's table.

    given: the tensor that the block was called with, by which a recomputation finds the decisions made.
    """
    x, table = inputs.x, state.plan.ratios
    batch, tokens = x.shape[:2]
    state.tokens = tokens
    index, regions, bins = _decided(state, given, batch)
    small, large, weight = table.pair(state.layer, regions, bins)
    keep_small, keep_large = ([kept_tokens(n, tokens) for n in bin] for bin in (small, large))
    undecided = index is None
    index, _, logits = state.block.diffratio(x, keep_large, index, keep_small)
    if undecided:  # without a gradient too: re-entrant checkpointing runs the forward pass like that
        state.saved.put(given, index, regions, bins)
        state.record(given, index)
    weights = {bins.weights[state.layer][r] for r in regions}
    forward_only = "small" if weights == {1.0} else "large" if weights == {0.0} else "none"
    why_not = why_two_passes(state) or state.spec.why_not_fused_call(state.block, inputs)
    run = _packed if why_not is None else _two_passes
    return run(state, inputs, index, logits, keep_small, keep_large, weight, forward_only, options)


def _decided(state: LayerState, given: Tensor, batch: int) -> tuple[Tensor | None, list[int], TableBins]:
    """The selection (None: to be made), regions and bins: those of the forward pass in a recomputation."""
    saved = state.saved.get(given)
    if saved is not None:
        return saved
    if in_backward():
        raise RuntimeError(
            "gradient checkpointing of learned ratios: the forward pass made no decision that could be "
            "reused; call model.train() before it, or use use_reentrant=False"
        )
    regions = state.plan.regions
    if len(regions) not in (1, batch):
        raise ValueError(
            f"timestep holds {len(regions)} values in several regions, the blocks get a batch of {batch}"
        )
    regions = regions * (batch if len(regions) == 1 else 1)
    return None, regions, state.plan.ratios.table_bins()


def _packed(state, inputs, index, logits, keep_small, keep_large, weight, forward_only, options) -> Tensor:
    linears, arguments = state.spec.linears(state.block, inputs)
    return two_bin_forward(
        steps_of("auto", "auto", inputs.x, in_place=False),
        linears,
        inputs.x,
        index,
        logits,
        keep_small,
        keep_large,
        weight,
        inputs.modulation,
        eps=inputs.eps,
        mlp_eps=inputs.mlp_eps,
        forward_only=forward_only,
        **arguments,
        **options,
    )


def _two_passes(
    state, inputs, index, logits, keep_small, keep_large, weight, forward_only, options
) -> Tensor:
    x, tokens = inputs.x, inputs.x.shape[1]
    parts = zip(index.split(keep_large), keep_small, strict=True)
    prefixes = torch.cat([part[:k] for part, k in parts])
    rows = index.sort().values

    def one(keep, index, name):
        if not any(keep):
            return x
        with torch.set_grad_enabled(torch.is_grad_enabled() and forward_only != name):
            return through_modules(state, inputs, keep, index, logits, options)

    small, large = one(keep_small, prefixes, "small"), one(keep_large, rows, "large")
    wide = torch.promote_types(x.dtype, weight.dtype)
    ends = (y.flatten(0, 1)[rows].to(wide) for y in (small, large))
    blended = torch.lerp(*ends, weight.to(wide)[rows // tokens, None])
    return x.flatten(0, 1).index_copy(0, rows, blended.to(x.dtype)).view(x.shape)
