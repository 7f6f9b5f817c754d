"""The forward of a routed block: `mod_block` on raw weights where that is the same, else the block's own
modules between our routing, gather + adaLN and scatter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffratio_kernels import adaln, gather_adaln, kept_tokens, mod_block, scatter_rescale

from .integrations import BlockInputs
from .integrations.spec import hooked
from .packing import concatenated, sharing, still_packed, why_not_one_matrix
from .state import LayerState, in_backward


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
    given = inputs.x
    index, keep = _selection(state, router, given)
    if not any(keep):
        return spec.output(block, inputs.x)
    if torch.is_autocast_enabled(inputs.x.device.type):
        # As in the dense block, x + gate * branch becomes as wide as the gate: PixArt's residual is fp32.
        inputs.x = inputs.x.to(torch.promote_types(inputs.x.dtype, inputs.modulation.dtype))
    options = {"rescale": state.plan.config.rescale, "score_scale": router.score_scale}
    if (why_modules(block, state) or spec.why_not_fused_call(block, inputs)) is None:
        y = _fused(block, state, inputs, keep, index, options)
    else:
        y = _through_modules(block, state, inputs, keep, index, options, given)
    return spec.output(block, y)


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
    if state.plan.record is not None:
        state.plan.record.append(Routing(state.layer, state.plan.timesteps, index, tuple(x.shape[:2])))


def _kept_counts(state: LayerState, x: Tensor) -> list[int]:
    (batch, tokens), tenths = x.shape[:2], state.tenths
    if len(tenths) not in (1, batch):
        raise ValueError(
            f"timestep holds {len(tenths)} values in several regions, the blocks get a batch of {batch}"
        )
    return [kept_tokens(n, tokens) for n in tenths] * (batch if len(tenths) == 1 else 1)


class Routing:
    """One recorded selection: `index` [T] holds rows of the flattened [B*N], `shape` is (B, N)."""

    def __init__(self, layer: int, timesteps: list[float] | None, index: Tensor, shape: tuple[int, int]):
        self.layer, self.index, self.shape = layer, index, shape
        self.timestep = None if not timesteps or len(set(timesteps)) > 1 else timesteps[0]
        self.timesteps = timesteps

    def kept(self) -> Tensor:
        """[B, N] bool: which tokens were kept."""
        mask = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=self.index.device)
        return mask.index_fill(0, self.index, True).view(self.shape)


def _fused(block, state, inputs: BlockInputs, keep, index, options) -> Tensor:
    router = block.diffratio
    linears = state.spec.qkv(block)
    if torch.compiler.is_compiling():
        weight, bias = concatenated(linears)
    elif still_packed(linears, state.packed):
        weight, bias = state.packed
    else:  # moved since apply_diffratio: the old matrix goes, and enable_diffratio packs the new one
        weight, bias = concatenated(linears)
        if not sharing(linears, state.packed):
            state.packed = None
    return mod_block(
        inputs.x,
        router.router_weight,
        keep,
        inputs.modulation,
        router_bias=router.router_bias,
        index=index,
        **options,
        **state.spec.fused_arguments(block, inputs, weight, bias),
    )


def _through_modules(block, state, inputs: BlockInputs, keep, index, options, given) -> Tensor:
    x, router = inputs.x, block.diffratio
    shift1, scale1, gate1, shift2, scale2, gate2 = inputs.modulation.unbind(1)
    undecided = index is None
    index, _, logits = router(x, keep, index)
    if undecided and not torch.compiler.is_compiling():
        _remember(state, given, index, keep)
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
