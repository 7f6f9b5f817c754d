"""What the modules of a block are, and whether that has changed since it was looked at."""

from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

_GLOBAL_HOOKS = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_METHODS = "forward", "__call__", "gelu"
"""What patches of a class replace; `gelu` is what diffusers' GELU calls."""
_originals: dict[type, list] = {}


def _methods(cls: type) -> list:
    return [getattr(cls, name, None) for name in _METHODS]


def remember(*classes: type) -> None:
    """Take the methods that classes have now for their own."""
    _originals.update((cls, _methods(cls)) for cls in classes)


def patched(cls: type) -> str | None:
    """Why calling a module of a remembered class does not do what it did, None where it does."""
    return f"{cls.__name__} was patched" if _methods(cls) != _originals[cls] else None


def patched_forward(cls: type) -> str | None:
    """The same of its forward alone: for modules that are not called."""
    return f"{cls.__name__} was patched" if cls.forward is not _originals[cls][0] else None


remember(nn.Linear, nn.LayerNorm, nn.Dropout)


class Fingerprint:
    """Of a block: classes and their forwards, forwards on instances, hooks, processors, children, dropout.

    Two of one block are equal as long as nothing of that has changed. It takes some microseconds: a call of
    the block makes one."""

    def __init__(self, block: nn.Module):
        modules = list(block.modules())
        self._modules = modules
        self._dicts = [vars(module) for module in modules]
        self._children = [module._modules for module in modules if module._modules]
        self._childless = [module._modules for module in modules if not module._modules]
        self._hooks = [vars(module)[name] for module in modules for name in _HOOKS] + list(_GLOBAL_HOOKS)
        self._processors = [vars(m) for m in modules if "processor" in vars(m)]
        classes = dict.fromkeys([*map(type, modules), *(type(own["processor"]) for own in self._processors)])
        self._methods = [(cls, name) for cls in classes for name in _METHODS if hasattr(cls, name)]
        self._dropouts = [m for m in modules if isinstance(m, nn.Dropout)]
        self._parameters = [m._parameters for m in modules if "weight" in m._parameters]

    def now(self) -> tuple:
        """What can be compared."""
        return (
            list(map(type, self._modules)),
            [getattr(cls, name, None) for cls, name in self._methods],
            [own.get("forward") for own in self._dicts[1:]],  # the block's own is the routed one
            list(map(len, self._hooks)) if any(self._hooks) else None,
            [type(own.get("processor")) for own in self._processors],
            [getattr(own.get("processor"), "_parallel_config", None) for own in self._processors],
            [dropout.p for dropout in self._dropouts],
            [type(own.get("weight")) for own in self._parameters],  # quantised ones are of other classes
            list(chain.from_iterable(map(dict.values, self._children))),
            any(self._childless),
        )


def hooked(module: nn.Module) -> str | None:
    """Why a module may do more than its class says: hooks, or a forward of its own."""
    own = vars(module)
    if any(own[name] for name in _HOOKS):
        return "it carries hooks"
    forward = own.get("forward")
    # diffusers leaves the plain bound method behind when the last of its hooks is removed.
    if forward is None or getattr(forward, "__func__", None) is type(module).forward:
        return None
    if held_by_accelerate(module) or group_of(module) is not None:
        return "offloading brings its weights for its own calls alone (blocks or models may be offloaded)"
    return "its forward was replaced"


def held_by_accelerate(module: nn.Module) -> bool:
    """Whether a hook of accelerate hands the module its parameters for each call alone."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(one, "offload", False) for one in getattr(hook, "hooks", [hook]))


def group_of(module: nn.Module):
    """The module's group of diffusers' group offloading, None where it has none."""
    registry = getattr(module, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook("group_offloading")
    return None if hook is None else hook.group


def moves_arguments(module: nn.Module) -> bool:
    """Whether a module's forward was replaced by accelerate alone, to move arguments to its device."""
    hook = type(vars(module).get("_hf_hook")).__name__
    return hook == "AlignDevicesHook" and not any(vars(module)[name] for name in _HOOKS)


def global_hooks() -> str | None:
    """Why every module may do more than its class says."""
    return "hooks on all modules are registered" if any(_GLOBAL_HOOKS) else None


def foreign(module: nn.Module, cls: type) -> str | None:
    """Why calling `module` is not what its remembered class `cls` did, None where it is."""
    if type(module) is not cls:
        plain = f"nn.{cls.__name__}" if cls is getattr(nn, cls.__name__, None) else cls.__name__
        return f"a {_kind(module)}, not a plain {plain}"
    return patched(cls) or hooked(module) or global_hooks()


def _kind(module: nn.Module) -> str:
    """The module too: PEFT's LoRA layer is called Linear as well."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def plain_linear(module: nn.Module) -> str | None:
    """Why calling `module` is not the same as F.linear with its own weight; None where it is.

    LoRA layers, quantised layers and hooked or offloaded modules all carry a `.weight` that is not the whole
    of what they compute."""
    reason = foreign(module, nn.Linear)
    if reason is not None:
        return reason
    if type(module.weight) is not nn.Parameter or type(module.weight.data) is not torch.Tensor:
        return f"its weight is a {type(module.weight.data).__name__}"
    return None if module.weight.is_floating_point() else f"its weight is {module.weight.dtype}"


def affine_linear(module: nn.Module) -> str | None:
    """Why calling `module` on rows is not an affine map with the bias of `bias_of`, None where it is.

    That is a Linear, or PEFT's LoRA layer around one, without dropout, bias or variant (DoRA) of its own.
    """
    if _kind(module) != "peft.tuners.lora.layer.Linear":
        return foreign(module, nn.Linear)
    if any(getattr(dropout, "p", 0) > 0 for dropout in module.lora_dropout.values()):
        return "LoRA with dropout"
    if module.lora_variant or any(module.lora_bias.values()):
        return "LoRA with a variant or a bias"
    if type(module.base_layer) is not nn.Linear:
        return f"LoRA around a {type(module.base_layer).__name__}"
    return global_hooks() or next((why for part in module.modules() if (why := hooked(part))), None)


def foreign_dropout(module: nn.Module) -> str | None:
    """Why a module is not a dropout that drops nothing, None where it is."""
    return foreign(module, nn.Dropout) or ("it has dropout" if module.p > 0 else None)


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of an `affine_linear`."""
    return getattr(module, "base_layer", module).bias


_REUSES_ROWS = ("pyramid_attention_broadcast", "faster_cache_block")
"""Hooks of diffusers that give a later step the result of an earlier one: of other tokens, in a routed
block."""


def reuses_rows(block: nn.Module) -> str | None:
    """Which module of a block carries a cache that reuses rows of other tokens, None where none does."""
    for name, module in block.named_modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook in () if registry is None else registry.hooks:
            if hook in _REUSES_ROWS:
                return f"{name or 'it'} carries {hook}, which would reuse the rows of other tokens"
    return None
