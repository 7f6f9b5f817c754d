"""MLPs of diffusers in the terms of the routed block: two products around an activation that is known."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers.models.activations import GEGLU, GELU, FP32SiLU, SwiGLU
from diffusers.models.attention import FeedForward
from torch import nn

from diffratio_kernels.blocks.stream import Mlp, Parallel
from diffratio_kernels.types import Activation, Linear, Product

from .inspection import affine_linear, bias_of, foreign, foreign_dropout, remember

_PROJECTED = {SwiGLU: Activation("silu", gate="last"), GEGLU: Activation("gelu", gate="last")}
"""First layers of a FeedForward, besides GELU."""
_KNOWN: dict[type, Activation] = {FP32SiLU: Activation("silu"), nn.SiLU: Activation("silu")}

remember(FeedForward, GELU, nn.GELU, *_PROJECTED, *_KNOWN)


@dataclass(frozen=True, slots=True)
class Layers:
    """Where a class of MLPs has its products, and what is between them.

    Example:
        >>> layers = Layers(("w1", "w3"), "w2")  # w2(silu(w1(x)) * w3(x))
    """

    fc1: tuple[str] | tuple[str, str]
    """The name of one Linear, or those of the gate and of the value."""
    fc2: str
    activation: Activation = Activation("silu", gate="first")


def know(cls: type, activation: Activation) -> None:
    """Take modules of a class for an activation."""
    remember(cls)
    _KNOWN[cls] = activation


def activation_of(module: nn.Module) -> Activation | None:
    """What a module without weights computes, None where that is not known."""
    cls = type(module)
    if cls is nn.GELU and foreign(module, cls) is None:
        return Activation(_gelu(module))
    known = cls in _KNOWN and foreign(module, cls) is None
    return _KNOWN[cls] if known and all(map(activation_of, module.children())) else None


def _gelu(module: nn.Module) -> str:
    return "gelu_tanh" if module.approximate == "tanh" else "gelu"


def layers_of(module: nn.Module, known: dict[type, Layers]) -> Layers | None:
    """Where an MLP has its products, None where it does more than they and its activation do, or where the
    second one is not affine.

    known: of classes besides diffusers' FeedForward.
    """
    if type(module) is FeedForward:
        if foreign_mlp(module) or affine_linear(module.net[2]):
            return None
        return Layers(("net.0.proj",), "net.2", projected(module))
    layers = known.get(type(module))
    if layers is None or foreign(module, type(module)) or affine_linear(getattr(module, layers.fc2)):
        return None
    products = *layers.fc1, layers.fc2
    between = [activation_of(child) for name, child in module.named_children() if name not in products]
    return layers if all(one and one.kind == layers.activation.kind for one in between) else None


def taken_apart(ff: nn.Module, layers: Layers, product: Callable[[nn.Module], Product]) -> Mlp:
    """An MLP by its products."""
    *fc1, last = (ff.get_submodule(name) for name in (*layers.fc1, layers.fc2))
    fc1, fc2 = tuple(map(product, fc1)), product(last)
    bias = None if isinstance(fc2, Linear) else bias_of(last)
    return Mlp(fc1 if len(fc1) == 2 else fc1[0], fc2, bias, layers.activation)


def parallel(block: nn.Module, parts, gate: str | None = None) -> Parallel:
    """The MLP beside the attention of a block with `proj_mlp`, `act_mlp` and `proj_out`.

    Args:
        block: a routed one.
        parts: its `Parts`.
        gate: as of `Activation`.
    """

    def activated(normed):
        first, value = Activation(gate=gate).parts(block.proj_mlp(normed))
        return block.act_mlp(first) if value is None else block.act_mlp(first) * value

    known, out = parts.activations.get(id(block.act_mlp)), parts.product(block.proj_out)
    if known is None:
        return Parallel(activated, out)
    return Parallel(parts.product(block.proj_mlp), out, activation=Activation(known.kind, gate))


def projected(ff: FeedForward) -> Activation:
    """What a FeedForward has between its products, of one that is not foreign."""
    first = ff.net[0]
    return Activation(_gelu(first)) if type(first) is GELU else _PROJECTED[type(first)]


def foreign_mlp(ff: nn.Module) -> str | None:
    """Why a module is not fc2(act(fc1(x))) with a known activation, None where it is."""
    parts = {"ff": foreign(ff, FeedForward)}
    if parts["ff"] is None:
        first = ff.net[0]
        if len(ff.net) not in (3, 4) or type(first) not in (GELU, *_PROJECTED):
            return f"ff: its activation is a {type(first).__name__}"
        parts |= {"ff.net.0": foreign(first, type(first)), "ff.net.1": foreign_dropout(ff.net[1])}
        if type(first) is SwiGLU and activation_of(first.activation) is None:
            return "ff.net.0.activation: not a plain SiLU"
        if len(ff.net) == 4:
            parts["ff.net.3"] = foreign_dropout(ff.net[3])
    return next((f"{name}: {why}" for name, why in parts.items() if why), None)
