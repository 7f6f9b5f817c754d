"""The forward of a routed block: `mod_block` on raw weights where that is the same, else the block's own
modules, and both bins of a ratio that is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffratio_kernels import kept_tokens, mod_block, mod_block_next
from diffratio_kernels.ops import autocast_is_on

from . import next_logits
from .integrations import BlockInputs
from .integrations.spec import hooked
from .integrations.text_cache import usable
from .one_matrix import concatenated, why_not_one_matrix
from .state import LayerState, in_backward
from .through_modules import through_modules
from .two_bin import two_bin_blocks


def routed_forward(state: LayerState, *args, **kwargs):
    """Takes the place of `state.block.forward`.

    Bound to the state and not to the block: torch.compile takes every integer that it reaches through an
    nn.Module as a constant, and a compiled block would hit the recompile limit at its ninth kept count.
    """
    block = state.block
    if not state.plan.enabled:
        return state.dense_forward(*args, **kwargs)
    spec, router = state.spec, block.diffratio
    inputs: BlockInputs = spec.inputs(block, *args, **kwargs)
    if usable(block):
        inputs.text_cache = state.text_cache
    given = inputs.x
    options = {"rescale": state.plan.config.rescale, "score_scale": router.score_scale}
    if state.plan.ratios is not None and (block.training or torch.is_grad_enabled()):
        _widen(inputs)
        return spec.output(block, two_bin_blocks(state, inputs, given, options))
    index, keep = _selection(state, router, given)
    if not any(keep):
        return spec.output(block, inputs.x)
    _widen(inputs)
    if (why_modules(block, state) or spec.why_not_fused_call(block, inputs)) is None:
        return spec.output(block, _fused(block, state, inputs, keep, index, options))
    undecided = index is None
    index, _, logits = router(inputs.x, keep, index)
    if undecided and not torch.compiler.is_compiling():
        _remember(state, given, index, keep)
    return spec.output(block, through_modules(state, inputs, keep, index, logits, options))


LayerState.routed_forward = routed_forward  # a bound method is pickled by its name


def _widen(inputs: BlockInputs) -> None:
    """Under autocast, as in the dense block, x + gate * branch is as wide as the gate: fp32 in PixArt."""
    if autocast_is_on(inputs.x.device):
        inputs.x = inputs.x.to(torch.promote_types(inputs.x.dtype, inputs.modulation.dtype))


def why_modules(block: nn.Module, state: LayerState) -> str | None:
    """Why the block's own modules are called, None where `mod_block` runs on its raw weights."""
    if torch.is_grad_enabled():
        return "gradients are wanted"
    reason = state.spec.why_not_fused(block)
    if reason is None and hooked(block.diffratio):
        return f"diffratio: {hooked(block.diffratio)}"
    return reason or why_not_one_matrix(state.spec.qkv(block))


def _selection(state: LayerState, router, x: Tensor) -> tuple[Tensor | None, list[int]]:
    """Kept tokens of every sample, and which they are where that is not left to the block: because the
    selection was saved for checkpointing, or is recorded without a gradient."""
    if torch.compiler.is_compiling():
        if state.plan.record is not None:
            raise RuntimeError("record_routing cannot look into a compiled model: record the model itself")
        return None, _kept_counts(state, x)
    state.tokens = x.shape[1]
    if not torch.is_grad_enabled() and state.plan.record is None:
        return None, _kept_counts(state, x)
    saved = state.saved.get(x)
    if saved is not None:
        return saved
    if in_backward() and state.plan.config.num_regions > 1:
        # Another forward may have changed the region since, and nothing was saved to go back to.
        raise RuntimeError("gradient checkpointing with timestep regions needs use_reentrant=False")
    keep = _kept_counts(state, x)
    if torch.is_grad_enabled() and any(keep):
        return None, keep
    with torch.no_grad():
        index, _, _ = router(x, keep)
    _remember(state, x, index, keep)
    return index, keep


def _remember(state: LayerState, x: Tensor, index: Tensor, keep: list[int]) -> None:
    """Save a decision for the recomputation of checkpointing, and record it where that is asked for."""
    if torch.is_grad_enabled():
        state.saved.put(x, index, keep)
    state.record(x, index)


def _kept_counts(state: LayerState, x: Tensor) -> list[int]:
    (batch, tokens), tenths = x.shape[:2], state.tenths
    if len(tenths) not in (1, batch):
        raise ValueError(
            f"timestep holds {len(tenths)} values in several regions, the blocks get a batch of {batch}"
        )
    return [kept_tokens(n, tokens) for n in tenths] * (batch if len(tenths) == 1 else 1)


def _fused(block, state, inputs: BlockInputs, keep, index, options) -> Tensor:
    router = block.diffratio
    arguments = inputs.x, router.router_weight, keep, inputs.modulation
    options = options | {"router_bias": router.router_bias, "index": index}
    options |= state.spec.fused_arguments(block, inputs, *concatenated(state.spec.qkv(block)))
    if state.plan.record is not None or not next_logits.handed_over(inputs.x):
        return mod_block(*arguments, **options)
    logits = state.plan.next_logits.take(inputs.x, router)
    following = _next_router(state, inputs.x)
    if following is None:
        return mod_block(*arguments, **options, logits=logits)
    out, made = mod_block_next(
        *arguments,
        **options,
        logits=logits,
        next_router_weight=following.router_weight,
        next_router_bias=following.router_bias,
    )
    state.plan.next_logits.put(out, following, made)
    return out


def _next_router(state: LayerState, x: Tensor) -> nn.Module | None:
    """The router of the next layer, if this layer on x is to make its logits and it can be given them."""
    following = state.plan.layers[state.layer + 1 : state.layer + 2]
    if not following or not any(following[0].tenths) or not next_logits.makes_next_logits(x):
        return None
    router = following[0].block.diffratio
    weight = router.router_weight
    return router if weight.shape == x.shape[2:] and weight.device == x.device else None
