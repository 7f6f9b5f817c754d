"""The forward of a routed block: its spec binds the call, the routed block computes it, with one bin or
two."""

import torch
from torch import Tensor

import diffratio_kernels.flops  # noqa: F401 - so that torch's counter knows the operators of a routed model
from diffratio_kernels import kept_tokens
from diffratio_kernels._autocast import autocast_is_on
from diffratio_kernels._checks import Check
from diffratio_kernels.blocks.joint import every_row, with_pinned
from diffratio_kernels.blocks.products import run_of
from diffratio_kernels.blocks.routed import routed
from diffratio_kernels.blocks.stream import Call, CrossAttention, Layout
from diffratio_kernels.blocks.two_bin import bins_of, two_bin
from diffratio_kernels.ops.route.cu_seqlens import cu_seqlens_for
from diffratio_kernels.ops.route.op import run_route, run_router_logits, run_select
from diffratio_kernels.types import Linear, PackedRows, Rescale, Run

from .state import RoutedLayer, check_batch, in_backward


def routed_forward(layer: RoutedLayer, *args, **kwargs):
    """Takes the place of `layer.block.forward`.

    Bound to the layer and not to the block: torch.compile takes every integer that it reaches through an
    nn.Module as a constant, and a compiled block would hit the recompile limit at its ninth kept count.
    """
    model, block = layer.model, layer.block
    if not model.enabled:
        return layer.dense_forward(*args, **kwargs)
    compiling = torch.compiler.is_compiling()
    if compiling:
        layer.inspected = layer.spec.inspect(block)
    else:
        refuse_transforms()
        layer.inspect()
        saved = layer.saved.get(args, kwargs)
        if saved is not None:
            model.told = saved[-1]  # the layout of that call of the model
    if model.baseline is not None and model.baseline.leaves(layer, args, kwargs):
        return layer.dense_forward(*args, **kwargs)
    call = layer.spec.bind(block, *args, **kwargs)
    if call is None:
        return layer.dense_forward(*args, **kwargs)
    if not isinstance(call, Call):
        spec = type(layer.spec).__name__
        raise TypeError(f"{layer.name}: {spec}.bind must return a Call, got {type(call).__name__}")
    given, image = call.image.tokens, call.image
    if not compiling:
        _check(layer, call)
    if autocast_is_on(given.device):
        for stream in (image, call.text):
            if stream is not None:  # as in the dense block, x + gate * branch is as wide as the gate
                wide = torch.promote_types(stream.tokens.dtype, stream.modulation.dtype)
                stream.tokens = stream.tokens.to(wide)
    if model.baseline is not None:
        out = _by_baseline(layer, call, args, kwargs)
        return layer.dense_forward(*args, **kwargs) if out is None else out
    if model.ratios is not None and (block.training or torch.is_grad_enabled()):
        return _two_bins(layer, call, args, kwargs)
    index, keep = _selection(layer, call, args, kwargs)
    if not any(keep) and call.one_stream and call.layout is None:
        if model.record is not None:
            layer.record(torch.empty(0, dtype=torch.int64, device=given.device), given.shape[:2])
        return call.output(image.tokens, None)
    run = run_of("mod_block", "auto", "auto", image.tokens, _direct(image.tokens))
    rows, logits = _select(layer, run, call, keep, index)
    if index is None and not compiling:
        if torch.is_grad_enabled():
            layer.saved.put(args, kwargs, rows.index, keep, model.told)
        layer.record(rows.index, logits.shape, logits)
    if call.layout is not None:
        rows, logits = with_pinned(call.layout, rows, logits, model.rescale.score_scale)
    return routed(call, rows, logits, model.rescale, run)


@torch.compiler.disable
def _by_baseline(layer: RoutedLayer, call: Call, args, kwargs):
    """All rows of the call as the baseline changes it; None where it leaves the block as it is."""
    if in_backward():
        raise RuntimeError(
            f"{layer.model.baseline.name}: gradient checkpointing runs a block twice, and a baseline has no "
            "memory of the first time"
        )
    x = call.image.tokens
    layer.tokens = x.shape[1]
    run = run_of("mod_block", "auto", "auto", x, _direct(x))
    call = layer.model.baseline.changed(layer, call, run, args, kwargs)
    if call is None:
        return None
    batch, tokens = x.shape[:2]
    rows, none = every_row(batch, tokens, x.device), x.new_zeros(batch, tokens, dtype=torch.float32)
    return routed(call, rows, none, Rescale("none"), run)


RoutedLayer.routed_forward = routed_forward  # a bound method is pickled by its name


def refuse_transforms() -> None:
    """Errors by name where torch would end in one of its own."""
    if torch.jit.is_tracing():
        raise RuntimeError(
            "diffratio: torch.jit.trace would keep the tokens that its example selects; use torch.compile, "
            "torch.export or disable_diffratio"
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotImplementedError(
            "diffratio: a routed block does not run under torch.func transforms (vmap, jvp, grad); call the "
            "model on a batch, or disable_diffratio"
        )


def _check(layer: RoutedLayer, call: Call) -> None:
    """Shapes and devices of what kernels read without a look at it."""
    x, modulation, cross = call.image.tokens, call.image.modulation, call.after_attention
    batch, _, width = x.shape if x.dim() == 3 else (0, 0, 0)
    right = modulation.shape[1:] == (6, width) and modulation.device == x.device
    right = right and (call.image.groups is not None or modulation.shape[0] == batch)
    if layer.router_reason is None:
        weight = layer.block._modules["diffratio"].router_weight
        right = right and weight.shape == (width,) and weight.device == x.device
    if isinstance(cross, CrossAttention):
        text = cross.keys_values.shape
        right = right and text[0] == batch and len(text) == 4 and text[2] == 2
        right = right and (cross.lengths is None or _fit(cross.lengths, batch, text[1], x.device))
    if not right:
        _name_what_is_wrong(layer, call)


def _fit(lengths, batch: int, text_tokens: int, device: torch.device) -> bool:
    """Whether lengths are int32 [B], and in 0..M where their values can be looked at."""
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int32 or lengths.shape != (batch,):
        return False
    values = lengths.tolist() if lengths.device.type == "cpu" and type(lengths) is Tensor else ()
    return lengths.device == device and all(0 <= n <= text_tokens for n in values)


def _name_what_is_wrong(layer: RoutedLayer, call: Call) -> None:
    check = Check(layer.name)
    check.tensor("x", call.image.tokens, "B N D")
    check.tensor("modulation", call.image.modulation, "B 6 D")
    if layer.router_reason is None:  # else it is called, and offloading may have its weights elsewhere
        router = layer.block.diffratio
        check.tensor("router_weight", router.router_weight, "D")
        check.optional("router_bias", router.router_bias, "1")
    cross = call.after_attention
    if isinstance(cross, CrossAttention):
        check.tensor("keys_values", cross.keys_values, "B M 2 E")
        check.optional("lengths", cross.lengths, "B", dtypes=(torch.int32,))
        check.fail(
            f"lengths must be in 0..{check.size('M')} (tokens of the text), got {cross.lengths.tolist()}"
        )


def _direct(x: Tensor) -> bool:
    """Whether nobody looks at the steps: no gradient, autocast, compiler or tensor subclass.

    A mode of torch that looks at operators (a counter of FLOPs) is shown ours.
    """
    if torch.compiler.is_compiling():  # which cannot look at the modes
        return False
    return (
        not torch.is_grad_enabled()
        and type(x) is Tensor
        and x.device.type in ("cpu", "cuda")
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.is_autocast_enabled(x.device.type)
    )


def _select(
    layer: RoutedLayer, run: Run, call: Call, keep, index=None, keep_small=None
) -> tuple[PackedRows, Tensor]:
    """The rows that the layer's router keeps among those that may be skipped, and its logits; a router that
    is hooked or wrapped is called."""
    router, x, layout = layer.block._modules["diffratio"], call.image.tokens, call.layout
    weights = None
    if layer.router_reason is None or torch.compiler.is_compiling():
        weights = Linear(router.router_weight, router.router_bias)
    if layout is not None:
        logits = router(x, [0])[2] if weights is None else run_router_logits(run, x, weights)
        return _select_among(layout, run, logits, keep, index, keep_small)
    if weights is not None:
        return run_route(run, x, weights, keep, index, keep_small)
    index, cu_seqlens, logits = router(x, keep, index, keep_small)
    return PackedRows(index, x.shape[1], keep, cu_seqlens), logits


def _select_among(layout: Layout, run: Run, logits: Tensor, keep, index, keep_small):
    """The rows kept among the tokens that may be skipped, in the layout's order, and their logits [B, n]."""
    logits = logits.gather(1, layout.order[:, : max(layout.routed)])
    ranked = logits
    if len(set(layout.routed)) > 1:  # shorter samples end in others
        places = torch.arange(logits.shape[1], device=logits.device)
        others = places >= cu_seqlens_for(layout.routed, logits).diff()[:, None]
        ranked = logits.masked_fill(others, torch.nan)  # which ranks below everything
    return run_select(run, ranked, keep, index, keep_small), logits


def _selection(layer: RoutedLayer, call: Call, args, kwargs) -> tuple[Tensor | None, list[int]]:
    """Kept tokens of every sample, and which they are where that is not left to the block: because the
    selection was saved for checkpointing."""
    x, layout = call.image.tokens, call.layout
    tokens = [x.shape[1]] if layout is None else layout.routed
    if not torch.compiler.is_compiling():
        layer.tokens = max(tokens)
        saved = layer.saved.get(args, kwargs)
        if saved is not None:
            return saved[:2]
        if in_backward() and layer.model.config.num_regions > 1:
            # Another forward may have changed the region since, and nothing was saved to go back to.
            raise RuntimeError("gradient checkpointing with timestep regions needs use_reentrant=False")
    elif layer.model.record is not None:
        raise RuntimeError("record_routing cannot look into a compiled model: record the model itself")
    return None, _kept_counts(layer, tokens, x.shape[0], args, kwargs)


def _kept_counts(layer: RoutedLayer, tokens: list[int], batch: int, args, kwargs) -> list[int]:
    """Kept tokens of each sample, of its number of tokens or that of all."""
    if not torch.compiler.is_compiling():
        kept = layer.kept_now()
        regions = layer.model.regions_now(layer, batch, args, kwargs)
        return _kept(layer, [kept[r] for r in regions], tokens)
    if layer.model.memo is None and layer.model.config.num_regions > 1:
        timestep = layer.spec.timestep(layer.block, *args, **kwargs)
        if timestep is not None:
            layer.model.enter(timestep)
    check_batch(layer.tenths, batch)
    return _kept(layer, layer.tenths, tokens)


def _kept(layer: RoutedLayer, tenths: list[int], tokens: list[int]) -> list[int]:
    """Of each sample; one number of both stands for any number of samples."""
    longest = len(tenths) if len(tokens) == 1 else len(tokens)
    tenths, tokens = (values * longest if len(values) == 1 else values for values in (tenths, tokens))
    rounding = layer.model.config.rounding
    return [kept_tokens(n, size, rounding) for n, size in zip(tenths, tokens, strict=True)]


@torch.compiler.disable
def _two_bins(layer: RoutedLayer, call: Call, args, kwargs):
    """w F(x, k_large) + (1 - w) F(x, k_small) with w and both bins from the model's table (paper section
    3.3)."""
    x, table = call.image.tokens, layer.model.ratios
    tokens = [x.shape[1]] if call.layout is None else call.layout.routed
    layer.tokens = max(tokens)
    index, regions, decided = _decided(layer, x.shape[0], args, kwargs)
    small, large, weight = table.pair(layer.row, regions, decided)
    keep_small, keep_large = (_kept(layer, bin, tokens) for bin in (small, large))
    run = run_of("two_bin_block", "auto", "auto", x, _direct(x))
    rows, logits = _select(layer, run, call, keep_large, index, keep_small)
    if index is None:  # without a gradient too: re-entrant checkpointing runs the forward pass like that
        layer.saved.put(args, kwargs, rows.index, regions, decided, layer.model.told)
        layer.record(rows.index, logits.shape, logits)
    layout, rescale = call.layout, layer.model.rescale
    if layout is not None:  # pinned tokens in front, so that the small set is a prefix of the large one
        rows, logits = with_pinned(layout, rows, logits, rescale.score_scale, pinned_first=True)
        pinned = layout.pinned * (x.shape[0] // len(layout.pinned))
        keep_small, keep_large = (
            [k + p for k, p in zip(keep, pinned, strict=True)] for keep in (keep_small, keep_large)
        )
    weights = {decided.weights[layer.row][r] for r in regions}
    forward_only = "small" if weights == {1.0} else "large" if weights == {0.0} else "none"
    bins = bins_of(weight, keep_small, keep_large, x)
    return two_bin(call, rows, bins, (logits, rescale), run, forward_only)


def _decided(layer: RoutedLayer, batch: int, args, kwargs):
    """The selection (None: to be made), regions of all samples and bins: those of the forward pass in a
    recomputation."""
    saved = layer.saved.get(args, kwargs)
    if saved is not None:
        return saved[:3]
    if in_backward():
        raise RuntimeError(
            "gradient checkpointing of learned ratios: the forward pass made no decision that could be "
            "reused; call model.train() before it, or use use_reentrant=False"
        )
    regions = layer.model.regions_now(layer, batch, args, kwargs)
    return None, regions, layer.model.ratios.table_bins()
