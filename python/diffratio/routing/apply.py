"""Apply, remove, switch on and off: a `diffratio` child module and a forward on every routed block.

The block's forward is replaced on the instance by a bound method, not through diffusers' HookRegistry: a
registry's closures keep pointing at the original after `copy.deepcopy`, so that an EMA copy would run the
original's weights. Class names, parameter names and block lists of the model stay as they are."""

import inspect
import warnings
from types import MethodType

import torch
from torch import nn

from diffratio_kernels.blocks.router import Router

from ..config import DiffRatioConfig
from ..families import spec_for
from ..families.inspection import hooked, reuses_rows
from ..families.not_routed import why_not
from ..families.registry import Spec, foreign_forward
from .find import (
    TABLE_NAME,
    routed_blocks,
    routed_layers,
    routed_model,
    transformer_of,
    transformers_of,
    unwrapped,
)
from .forward import refuse_transforms, routed_forward
from .graphs import take_graphs
from .offloaded import check_values, offloading_of
from .spacing import warn_uneven
from .state import RoutedLayer, RoutedModel
from .text_cache import restore_caption


def apply_diffratio(model_or_pipe, config: DiffRatioConfig | None = None):
    """Route every block that a spec knows, in place.

    The routers are new: until they are trained they choose tokens at random, and a trained model's images
    fall apart. `diffratio train` trains them, or a loop of your own that starts at compression 0 with
    `learn_ratios`; `load_diffratio` applies what was trained. Offloading, DDP and caches come after this.
    Routers of a model on the meta device are there too: `to_empty` draws them, and
    `load_state_dict(..., assign=True)` loads them.
    Routers come last in `parameters()`, behind the model's own, for whoever knows parameters by their order:
    diffusers' EMAModel averages the routers if it is made after this, and its `save_pretrained` writes the
    model's own weights, as the model's does (`copy_to`, then `save_diffratio` saves averaged routers).

    Args:
        model_or_pipe: a diffusers model or a pipeline with a transformer, or two (Wan 2.2), which are both
            routed. On one that is routed already the routers stay and the kept counts are replaced.
        config: how much is skipped where; None is `DiffRatioConfig()`, 30 % everywhere.

    Returns:
        What it was given.

    Raises:
        ValueError: no block matches, or one that cannot be routed, or the model is wrapped by DDP or FSDP,
            which would not see the routers; nothing is changed.
        TypeError: `config` is no DiffRatioConfig.

    Warns:
        UserWarning: untrained routers will skip tokens; or the pipeline's scheduler gives some timestep
            regions more steps than others.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.0, num_regions=4))
        >>> table = learn_ratios(model)
    """
    models = transformers_of(model_or_pipe)
    for model in models:
        route_blocks(model, config)
    warn_untrained([layer for model in models for layer in routed_layers(transformer_of(model))])
    warn_uneven(model_or_pipe)
    return model_or_pipe


def warn_untrained(layers: list[RoutedLayer]) -> None:
    """For the caller of the caller: routers that nothing has trained are about to skip tokens."""
    if any(min(layer.kept) < 10 and layer.untrained for layer in layers):
        warnings.warn(
            "the routers are untrained: they skip tokens at random, and a trained model's images fall apart. "
            "Train them first (`diffratio train`, or DiffRatioConfig(compression=0.0) and learn_ratios), or "
            "load trained ones with load_diffratio",
            stacklevel=3,
        )


def route_blocks(model_or_pipe, config: DiffRatioConfig | None = None):
    """`apply_diffratio` without its warning, for whoever trains or loads the routers next."""
    config = DiffRatioConfig() if config is None else config
    if not isinstance(config, DiffRatioConfig):
        raise TypeError(f"config must be a DiffRatioConfig, got {type(config).__name__}")
    model, wrappers = unwrapped(model_or_pipe)
    if "_diffratio_model" in vars(model):
        _reconfigure(model, config)
        return model_or_pipe
    refuse_reducer(model, wrappers, "apply_diffratio")
    patch(model, config)
    return model_or_pipe


def patch(model: nn.Module, config: DiffRatioConfig, baseline=None) -> None:
    """Patch every block that a spec knows, with a router or for a baseline; raises as `apply_diffratio`."""
    found, dense = _find_blocks(model)
    config.kept_tenths(len(found))  # complains before anything is changed
    specs = [spec for _, _, spec in found]
    signature = inspect.signature(inspect.unwrap(type(model).forward))
    parameters = list(signature.parameters)[1:]
    name = specs[0].timestep_name
    position = parameters.index(name) if name in parameters else -1
    layouts = {type(spec): spec for spec in specs if type(spec).layout is not Spec.layout}
    if baseline is not None:
        layouts[type(baseline)] = baseline
    units = _timestep_units(specs, config)
    shared = RoutedModel(
        config, units, name, position, specs[0].timesteps_of_tokens, list(layouts.values()), signature, dense
    )
    shared.baseline = baseline
    for number, (name, block, spec) in enumerate(found):
        _patch(block, spec, name, number, shared)
    model._diffratio_model = shared
    model.named_modules = _RoutersLast(model)
    shared.configure(config, routed_layers(model))
    model.register_forward_pre_hook(_enter_call, prepend=True, with_kwargs=True)
    model.register_forward_hook(_leave_call, always_call=True)
    embedding = model._modules.get("adaln_single")
    if embedding is not None:  # what drives the blocks without calling the model embeds its timestep
        embedding._diffratio_model = shared
        embedding.register_forward_pre_hook(_embed_timestep, prepend=True, with_kwargs=True)


def _given(model: nn.Module, args, kwargs) -> dict:
    """What a model is called with, by the names of its forward's arguments."""
    bound = model._diffratio_model.signature.bind(model, *args, **kwargs)
    given = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


class _RoutersLast:
    """`named_modules` of a routed model, and so its `parameters`: what routes it stands behind its own."""

    def __init__(self, model: nn.Module):
        self._model = model

    def __call__(self, memo=None, prefix="", remove_duplicate=True):
        model = self._model
        found = list(type(model).named_modules(model, memo, prefix, remove_duplicate))
        yield from sorted(found, key=lambda named: _routes(named[0][len(prefix) :]))


def _routes(name: str) -> bool:
    return not {"diffratio", TABLE_NAME}.isdisjoint(name.split("."))


def refuse_reducer(model: nn.Module, wrappers: list[nn.Module], what: str) -> None:
    """A ValueError under DDP and FSDP, which keep to the parameters that they were given: others would drift
    apart between processes, and missing ones be waited for."""
    reducers = [nn.parallel.DistributedDataParallel]
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

        reducers += [FSDPModule, FullyShardedDataParallel]
    if any(isinstance(module, tuple(reducers)) for module in (*wrappers, *model.modules())):
        raise ValueError(
            "model is wrapped by DistributedDataParallel or FSDP, which average the gradients of the "
            f"parameters that they were given and of no others; call {what} before wrapping it"
        )


def _patch(block: nn.Module, spec: Spec, name: str, number: int, shared: RoutedModel) -> None:
    anchor, config = next(block.parameters()), shared.config
    layer = RoutedLayer(block, block.forward, number, name, spec, shared, kept=[10])
    if shared.baseline is None:
        with torch.inference_mode(False):  # a router must be trainable wherever it was made
            block.diffratio = Router(
                spec.width(block), start=config.router_start, bias=config.router_bias, device=anchor.device
            )
        if not anchor.is_meta:
            layer.drawn = block.diffratio.router_weight.detach().to("cpu", copy=True)
    block._diffratio = layer
    block.forward = MethodType(routed_forward, layer)
    layer.inspect()


def _find_blocks(model: nn.Module) -> tuple[list[tuple[str, nn.Module, Spec]], dict[str, str]]:
    """Blocks to route with their specs, and those that their spec leaves dense with the reason."""
    found, reasons, dense = [], [], {}
    for name, block in model.named_modules():
        spec = spec_for(block)
        if spec is None:
            continue
        reason = spec.leave_dense(name, block)
        if reason is not None:
            dense[name] = reason
            continue
        reason = foreign_forward(block) or spec.unsupported_reason(block) or hooked(block)
        reason = reason or offloading_of(block) or reuses_rows(block)
        if reason is None:
            found.append((name, block, spec))
        else:
            reasons.append(f"{name}: {reason}")
    if reasons:
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        raise ValueError(
            f"model {type(model).__name__} has blocks that cannot be routed: {'; '.join(reasons[:3])}{more}. "
            "Apply diffratio before caches, offloading and other hooks."
        )
    if not found:
        why = why_not(model) or "see register_block_spec for blocks of your own"
        raise ValueError(
            f"model {type(model).__name__} has no transformer block that diffratio routes; {why}"
        )
    return found, dense


def _timestep_units(specs: list[Spec], config: DiffRatioConfig):
    units = {spec.timestep_units for spec in specs}
    if config.timestep_units is not None:
        return config.timestep_units
    if len(units) > 1:
        raise ValueError(f"the specs of the blocks disagree about timestep_units: {sorted(units)}")
    return units.pop()


def _reconfigure(model: nn.Module, config: DiffRatioConfig) -> None:
    shared = routed_model(model)
    if shared.ratios is not None:
        raise ValueError("config: the model learns its ratios; call freeze_ratios or remove_diffratio first")
    check_same_routers(shared, config)
    layers = routed_layers(model)
    shared.configure(config, layers)
    shared.units = _timestep_units([layer.spec for layer in layers], config)
    shared.enabled = True


def check_same_routers(shared: RoutedModel, config: DiffRatioConfig) -> None:
    """A ValueError where the config is for other routers than the model has."""
    for name in ("router_start", "router_bias"):
        if getattr(config, name) != getattr(shared.config, name):
            raise ValueError(
                f"{name}={getattr(config, name)!r} differs from the routers that the model has "
                f"({getattr(shared.config, name)!r}); call remove_diffratio first"
            )


def _enter_call(model: nn.Module, args, kwargs):
    """Forward pre-hook of the model: kept counts by timestep region, decided once per call."""
    shared = model._diffratio_model
    if shared.enabled and not torch.compiler.is_compiling():
        refuse_transforms()
    if shared.text is not None:
        shared.text.check()
    shared.ratios = model._modules.get(TABLE_NAME)  # by name: PEFT's modules_to_save puts a wrapper there
    if shared.enabled:
        if shared.ratios is not None:
            check_values(model, [shared.ratios], "its ratios are learned and are")
        if shared.moved and not torch.compiler.is_compiling():
            routed_layers(model)
        position = shared.timestep_position
        shared.enter(kwargs.get(shared.timestep_name, args[position] if 0 <= position < len(args) else None))
        shared.memo = {}
        if shared.layouts:
            given = _given(model, args, kwargs)
            shared.told = {type(spec): spec.layout(model, given) for spec in shared.layouts}


def _leave_call(model: nn.Module, args, output):
    """Forward hook of the model: nothing that belongs to one call outlives it."""
    shared = model._diffratio_model
    shared.memo, shared.over = None, True


def _embed_timestep(embedding: nn.Module, args, kwargs):
    """Forward pre-hook of PixArt's embedding: `model.forward` and wrappers that drive the blocks do not call
    the model."""
    shared = embedding._diffratio_model
    if shared.memo is None and shared.text is not None:
        shared.text.check()
    if shared.memo is None and shared.enabled:
        shared.enter(args[0] if args else kwargs.get("timestep"))


def remove_diffratio(model_or_pipe):
    """Undo `apply_diffratio`: outputs, forwards and state_dict are as before.

    Args:
        model_or_pipe: a routed model, or a pipeline with one.

    Returns:
        What it was given.

    Raises:
        ValueError: the model is not patched, is wrapped by DDP, or a block was hooked afterwards.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.3))
        >>> model = remove_diffratio(model)
    """
    for model in transformers_of(model_or_pipe):
        _remove(model)
    return model_or_pipe


def _remove(model_or_pipe) -> None:
    model, wrappers = unwrapped(model_or_pipe)
    routed_model(model)
    refuse_reducer(model, wrappers, "remove_diffratio")
    unpatch(model)


def unpatch(model: nn.Module) -> None:
    """Take off what `patch` put on; a ValueError where a block was hooked afterwards."""
    shared, blocks = routed_model(model, baseline=True), routed_blocks(model)
    applied = "apply_diffratio" if shared.baseline is None else shared.baseline.name
    for block in blocks:
        if getattr(block.forward, "__func__", None) is not routed_forward:
            name = block._diffratio.name
            raise ValueError(f"block {name} was hooked after {applied}; remove that hook first")
    for block in blocks:
        del block.forward, block._diffratio
        block._modules.pop("diffratio", None)
    embedding = model._modules.get("adaln_single")
    for module in (model, embedding):
        if module is not None and vars(module).get("_diffratio_model") is shared:
            _take_hooks(module)
            del module._diffratio_model
    vars(model).pop("named_modules", None)
    model._modules.pop(TABLE_NAME, None)
    restore_caption(model)
    take_graphs(model)


def _take_hooks(module: nn.Module) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if hook in (_enter_call, _leave_call, _embed_timestep):
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)


def drop_ratios(model: nn.Module) -> None:
    """Take the table of learned ratios off a patched model, if it has one."""
    model._modules.pop(TABLE_NAME, None)
    routed_model(model).ratios = None


def enable_diffratio(model_or_pipe):
    """Route again after `disable_diffratio`.

    Args:
        model_or_pipe: as of `disable_diffratio`.

    Returns:
        What it was given.

    Raises:
        ValueError: no block is patched.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.3))
        >>> model = enable_diffratio(disable_diffratio(model))
    """
    return _switch(model_or_pipe, True)


def disable_diffratio(model_or_pipe):
    """Run the blocks as they were, keeping routers and settings.

    Args:
        model_or_pipe: a routed model, a pipeline with one, or a module that holds copies of routed blocks.

    Returns:
        What it was given.

    Raises:
        ValueError: no block is patched.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.3))
        >>> dense = disable_diffratio(model)(latents, **inputs).sample
    """
    return _switch(model_or_pipe, False)


def _switch(model_or_pipe, enabled: bool):
    for model in transformers_of(model_or_pipe):
        shared = routed_model(transformer_of(model), baseline=True)
        shared.enabled = enabled
        if shared.text is not None:
            shared.text.invalidate()
    return model_or_pipe
