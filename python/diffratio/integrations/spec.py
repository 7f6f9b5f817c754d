"""The contract between routing and a transformer block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffratio_kernels.ops.two_bin_steps import Linears


@dataclass
class BlockInputs:
    """What one call of a block was given, in the terms of the routed block.

    x [B, N, D]; modulation [B, 6, D]: shift1, scale1, gate1, shift2, scale2, gate2; eps of the two layer
    norms; `context`: whatever the branches need besides (tensors with a leading batch dimension follow
    their samples).
    """

    x: Tensor
    modulation: Tensor
    eps: float = 1e-6
    mlp_eps: float = 1e-6
    context: dict[str, Any] = field(default_factory=dict)
    text_cache: Callable | None = None
    """A `TextCache` for what depends on the text alone, None where that is computed in every call."""

    def select(self, samples: list[int]) -> BlockInputs:
        """The inputs of some samples of the batch."""
        batch = self.x.shape[0]

        def pick(value):
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch:
                return value[samples]
            return value

        context = {name: pick(value) for name, value in self.context.items()}
        return replace(self, x=self.x[samples], modulation=self.modulation[samples], context=context)


class BlockSpec:
    """Subclass for a block class of your own and pass an instance to `register_block_spec`.

    The block computes, as every adaLN block does,
        h = x + gate1 * self_attention(LN(x) * (1 + scale1) + shift1);  h = h + cross_attention(h);
        y = h + gate2 * mlp(LN(h) * (1 + scale2) + shift2)
    and the spec hands out the three branches. They are called on the kept tokens [b, k, D] alone.
    """

    timestep_units: str = "training"
    """What the model is given as timestep: "training" (0..999) or "noise" (a level in [0, 1])."""

    def why_not(self, block: nn.Module) -> str | None:
        """Why this block cannot be routed, None where it can."""
        return None

    def width(self, block: nn.Module) -> int:
        """D."""
        raise NotImplementedError

    def inputs(self, block: nn.Module, *args, **kwargs) -> BlockInputs:
        """Bind one call of the block (positional or by keyword)."""
        raise NotImplementedError

    def self_attention(self, block: nn.Module, normed: Tensor, inputs: BlockInputs) -> Tensor:
        """normed [b, k, D] -> [b, k, D]."""
        raise NotImplementedError

    def cross_attention(self, block: nn.Module, hidden: Tensor, inputs: BlockInputs) -> Tensor | None:
        """hidden [b, k, D] -> [b, k, D], None for a block without."""
        return None

    def mlp(self, block: nn.Module, normed: Tensor, inputs: BlockInputs) -> Tensor:
        """normed [b, k, D] -> [b, k, D]."""
        raise NotImplementedError

    def output(self, block: nn.Module, x: Tensor) -> Any:
        """What the block's forward returns for the finished x [B, N, D]."""
        return x

    def why_not_fused(self, block: nn.Module) -> str | None:
        """Why `torch.ops.diffratio.mod_block` cannot run on this block's raw weights, None where it can."""
        return "its spec gives no raw weights"

    def why_not_fused_call(self, block: nn.Module, inputs: BlockInputs) -> str | None:
        """Why `mod_block` cannot take the inputs of this call, None where it can."""
        return None

    def fused_arguments(
        self, block: nn.Module, inputs: BlockInputs, qkv: Tensor, qkv_bias: Tensor | None
    ) -> dict:
        """The weights by the argument names of `mod_block`, without x, router and modulation."""
        raise NotImplementedError

    def why_not_linears(self, block: nn.Module) -> str | None:
        """Why a training pass at two bins calls the branches twice, None where `linears` makes it one."""
        return "its spec gives no linears"

    def linears(self, block: nn.Module, inputs: BlockInputs) -> tuple[Linears, dict]:
        """The block's products as callables on packed rows, and num_heads, context_kv and context_lengths.

        The block must be what `mod_block` computes: heads without norms of their own, tanh GELU, no dropout.
        """
        raise NotImplementedError

    def qkv(self, block: nn.Module) -> list[nn.Linear]:
        """The three projections that make up qkv_weight, in that order (only with raw weights)."""
        raise NotImplementedError


_specs: dict[type[nn.Module], BlockSpec] = {}


def register_block_spec(cls: type[nn.Module], spec: BlockSpec) -> None:
    """Teach `apply_diffratio` a block class; a class registered before is replaced."""
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"register_block_spec: cls must be a class of nn.Module, got {cls!r}")
    if not isinstance(spec, BlockSpec):
        raise TypeError(f"register_block_spec: spec must be a BlockSpec, got {type(spec).__name__}")
    if spec.timestep_units not in ("training", "noise"):
        raise ValueError(
            f"register_block_spec: timestep_units={spec.timestep_units!r} must be 'training' or 'noise'"
        )
    _specs[cls] = spec


def spec_for(block: nn.Module) -> BlockSpec | None:
    """The spec of the block's class or of its nearest registered base class."""
    return next((_specs[cls] for cls in type(block).__mro__ if cls in _specs), None)


def plain_linear(module: nn.Module) -> str | None:
    """Why calling `module` is not the same as F.linear with its own weight; None where it is.

    LoRA layers, quantised layers and hooked or offloaded modules all carry a `.weight` that is not the
    whole of what they compute.
    """
    if type(module) is not nn.Linear:
        # The module too: PEFT's LoRA layer is called Linear as well.
        return f"a {type(module).__module__}.{type(module).__qualname__}, not a plain nn.Linear"
    if type(module.weight) is not nn.Parameter or type(module.weight.data) is not torch.Tensor:
        return f"its weight is a {type(module.weight.data).__name__}"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}"
    return hooked(module)


def affine_linear(module: nn.Module) -> str | None:
    """Why calling `module` on rows is not an affine map with the bias of `bias_of`, None where it is.

    That is a Linear, or PEFT's LoRA layer around one, without dropout, bias or variant (DoRA) of its own.
    """
    if type(module) is nn.Linear:
        return hooked(module)
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if kind != "peft.tuners.lora.layer.Linear":
        return f"a {kind}, not an affine layer that is known"
    if any(getattr(dropout, "p", 0) > 0 for dropout in module.lora_dropout.values()):
        return "LoRA with dropout"
    if module.lora_variant or any(module.lora_bias.values()):
        return "LoRA with a variant or a bias"
    if type(module.base_layer) is not nn.Linear:
        return f"LoRA around a {type(module.base_layer).__name__}"
    return next((reason for part in module.modules() if (reason := hooked(part))), None)


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of an `affine_linear`."""
    return getattr(module, "base_layer", module).bias


def hooked(module: nn.Module) -> str | None:
    """Why a module may do more than its class says: hooks, or a forward of its own."""
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return "it carries hooks"
    forward = vars(module).get("forward")
    # diffusers leaves the plain bound method behind when the last of its hooks is removed.
    if forward is not None and getattr(forward, "__func__", None) is not type(module).forward:
        return "its forward was replaced"
    return None
