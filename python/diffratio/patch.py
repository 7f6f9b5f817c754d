"""Apply, remove, switch on and off: a `diffratio` child module and a forward on every routed block.

The block's forward is replaced on the instance by a bound method, not through diffusers' HookRegistry: a
registry's closures keep pointing at the original after `copy.deepcopy`, so that an EMA copy would run the
original's weights. Class names, parameter names and block lists of the model stay as they are.
"""

from __future__ import annotations

import inspect
import warnings
from contextlib import contextmanager
from types import MethodType

from torch import nn

from diffratio_kernels.modules import Router

from .config import DiffRatioConfig
from .integrations import spec_for
from .integrations.model_text import restore_caption
from .integrations.spec import hooked
from .model_graphs import take_graphs
from .offloaded import check_values, offloading_of
from .routed import routed_forward
from .state import LayerState, Plan

TABLE_NAME = "diffratio_ratios"
"""The child of a model that holds the ratios it learns."""


def transformer_of(model_or_pipe) -> nn.Module:
    """The model itself, or a pipeline's `transformer`, without the wrappers of torch.compile, DDP and PEFT.

    A wrapper would add its prefix to the names of the blocks, and an adapter would fit that wrapper alone.
    """
    model = getattr(model_or_pipe, "transformer", model_or_pipe)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be an nn.Module or a pipeline with a transformer, got {type(model_or_pipe).__name__}"
        )
    while True:
        if "_orig_mod" in model._modules:
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(type(model), "get_base_model"):  # PEFT, without importing it
            model = model.get_base_model()
        else:
            return model


def routed_blocks(model: nn.Module) -> list[nn.Module]:
    """The patched blocks, in layer order."""
    return [module for module in model.modules() if "_diffratio" in vars(module)]


def plan_of(model: nn.Module) -> Plan:
    """The plan of a patched model; an error where there is none."""
    if "_diffratio_plan" not in vars(model):
        raise ValueError(f"model {type(model).__name__} has no diffratio blocks (call apply_diffratio first)")
    return model._diffratio_plan


def apply_diffratio(model_or_pipe, config: DiffRatioConfig | None = None):
    """Route every block that a spec knows, in place.

    The routers are new: until they are trained they choose tokens at random, and a trained model's images
    fall apart. `diffratio train` trains them, or a loop of your own that starts at compression 0 with
    `learn_ratios`; `load_diffratio` applies what was trained. Offloading comes after this. Routers of a model
    on the meta device are there too: `to_empty` draws them, `load_state_dict(..., assign=True)` loads them.
    Optimizers and averages that know parameters by their order (diffusers' EMAModel) are made after this.

    Args:
        model_or_pipe: a diffusers model or a pipeline with a transformer. On one that is routed already the
            routers stay and the kept counts are replaced.
        config: how much is skipped where; None is `DiffRatioConfig()`, 30 % everywhere.

    Returns:
        What it was given.

    Raises:
        ValueError: no block matches, or one that cannot be routed; nothing is changed.
        TypeError: `config` is no DiffRatioConfig.

    Warns:
        UserWarning: untrained routers will skip tokens.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.0, num_regions=4))
        >>> table = learn_ratios(model)
    """
    route_blocks(model_or_pipe, config)
    warn_untrained(plan_of(transformer_of(model_or_pipe)))
    return model_or_pipe


def warn_untrained(plan: Plan) -> None:
    """For the caller of the caller: routers that nothing has trained are about to skip tokens."""
    if any(min(plan.table[state.layer]) < 10 and state.untrained for state in plan.layers):
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
    model = transformer_of(model_or_pipe)
    if "_diffratio_plan" in vars(model):
        _reconfigure(plan_of(model), config)
        return model_or_pipe

    found = _find_blocks(model)
    config.kept_tenths(len(found))  # complains before anything is changed
    parameters = list(inspect.signature(type(model).forward).parameters)[1:]
    position = parameters.index("timestep") if "timestep" in parameters else -1
    plan = Plan(config, position, units=_timestep_units(found))
    for layer, (name, block, spec) in enumerate(found):
        anchor = next(block.parameters())
        block.diffratio = Router(
            spec.width(block), start=config.router_start, bias=config.router_bias, device=anchor.device
        )
        block._diffratio = LayerState(block, block.forward, layer, name, spec, plan, tenths=[10])
        plan.layers.append(block._diffratio)
        if not anchor.is_meta:
            block._diffratio.drawn = block.diffratio.router_weight.detach().to("cpu", copy=True)
        block.forward = MethodType(routed_forward, block._diffratio)
    plan.set_table(config, len(found))
    model._diffratio_plan = plan
    model.register_forward_pre_hook(_enter_call, prepend=True, with_kwargs=True)
    return model_or_pipe


def _find_blocks(model: nn.Module) -> list[tuple[str, nn.Module, object]]:
    found, reasons = [], []
    for name, block in model.named_modules():
        spec = spec_for(block)
        if spec is None:
            continue
        reason = spec.why_not(block) or hooked(block) or offloading_of(block)
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
        raise ValueError(
            f"model {type(model).__name__} has no transformer block that diffratio knows; "
            "see register_block_spec for blocks of your own"
        )
    return found


def _timestep_units(found: list[tuple[str, nn.Module, object]]) -> str:
    units = {spec.timestep_units for _, _, spec in found}
    if len(units) > 1:
        raise ValueError(f"the specs of the blocks disagree about timestep_units: {sorted(units)}")
    return units.pop()


def _reconfigure(plan: Plan, config: DiffRatioConfig) -> None:
    if plan.ratios is not None:
        raise ValueError("config: the model learns its ratios; call freeze_ratios or remove_diffratio first")
    check_same_routers(plan, config)
    plan.set_table(config, len(plan.layers))
    plan.enabled = True


def check_same_routers(plan: Plan, config: DiffRatioConfig) -> None:
    """A ValueError where the config is for other routers than the model has."""
    for name in ("router_start", "router_bias"):
        if getattr(config, name) != getattr(plan.config, name):
            raise ValueError(
                f"{name}={getattr(config, name)!r} differs from the routers that the model has "
                f"({getattr(plan.config, name)!r}); call remove_diffratio first"
            )


def _enter_call(model: nn.Module, args, kwargs):
    """Forward pre-hook of the model: kept counts by timestep region, decided once per call."""
    plan = model._diffratio_plan
    plan.ratios = model._modules.get(TABLE_NAME)  # by name: PEFT's modules_to_save puts a wrapper there
    if plan.enabled:
        if plan.ratios is not None:
            check_values(model, [plan.ratios], "its ratios are learned and are")
        position = plan.timestep_position
        plan.enter(kwargs.get("timestep", args[position] if 0 <= position < len(args) else None))
        if plan.text is not None:
            return plan.text.mask.arguments(model, args, kwargs)
    return None


def remove_diffratio(model_or_pipe):
    """Undo `apply_diffratio`: outputs, forwards and state_dict are as before. Returns what it was given."""
    model = transformer_of(model_or_pipe)
    plan_of(model)
    blocks = routed_blocks(model)
    for block in blocks:
        if getattr(block.forward, "__func__", None) is not routed_forward:
            raise ValueError(
                f"block {block._diffratio.name} was hooked after apply_diffratio; remove that hook first"
            )
    for block in blocks:
        del block.forward, block.diffratio, block._diffratio
    for key, hook in list(model._forward_pre_hooks.items()):
        if hook is _enter_call:
            del model._forward_pre_hooks[key], model._forward_pre_hooks_with_kwargs[key]
    drop_ratios(model)
    restore_caption(model)
    take_graphs(model)
    del model._diffratio_plan
    return model_or_pipe


def drop_ratios(model: nn.Module) -> None:
    """Take the table of learned ratios off a patched model, if it has one."""
    model._modules.pop(TABLE_NAME, None)
    plan_of(model).ratios = None


def enable_diffratio(model_or_pipe):
    """Route again after `disable_diffratio`. Returns its argument."""
    plan_of(transformer_of(model_or_pipe)).enabled = True
    return model_or_pipe


def disable_diffratio(model_or_pipe):
    """Run the blocks as they were, keeping routers and settings. Returns its argument."""
    plan = plan_of(transformer_of(model_or_pipe))
    plan.enabled = False
    plan.forget_text()
    return model_or_pipe


@contextmanager
def record_routing(model_or_pipe):
    """Collect every selection made inside: a list of `Routing` (layer, timestep, index, shape, kept()).

    A recording inside another one is part of it too.
    """
    plan = plan_of(transformer_of(model_or_pipe))
    outer, plan.record = plan.record, []
    log = plan.record
    try:
        yield log
    finally:
        plan.record = outer
        if outer is not None:
            outer += log
