"""What the specs of diffusers' blocks share: a block is taken apart into the bundles of the routed block.

Modules that the routed block does not call (attention, norms, an MLP taken apart) must be what their class
says: a spec names them, and whoever hooks, patches or replaces one is told. Others are called as they are."""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Layout, Mlp, Rope, SelfAttention
from diffratio_kernels.types import Linear, Product

from .attention_modules import foreign_mlp, product_of
from .inspection import (
    affine_linear,
    bias_of,
    foreign_dropout,
    hooked,
    moves_arguments,
    patched,
    plain_linear,
    remember,
)
from .registry import Spec, inspected
from .text_mask import keys_values_of


@dataclass(slots=True)
class Parts:
    """What a block's modules were found to be."""

    refused: str | None
    """Why the block cannot be routed as it is now."""
    raw: set[int] = field(default_factory=set)
    """ids of the Linears whose weights are all that they compute."""
    affine: set[int] = field(default_factory=set)
    """ids of the MLPs that are two products around a tanh GELU, the second one affine."""
    slow: str | None = None
    """The first Linear that is not raw, and why."""

    def product(self, module: nn.Module) -> Product:
        """A Linear's weights where they are the whole truth, else the module itself."""
        return product_of(module, id(module) in self.raw)

    def mlp(self, ff: nn.Module) -> Mlp | nn.Module:
        """The MLP by its products, or the module."""
        if id(ff) not in self.affine:
            return ff
        fc1, fc2 = self.product(ff.net[0].proj), self.product(ff.net[2])
        return Mlp(fc1, fc2, None if isinstance(fc2, Linear) else bias_of(fc2))

    def attention(
        self, attn: nn.Module, rope: Rope | None = None, text: bool = False, fused: bool = True, **more
    ) -> SelfAttention:
        """Attention by the layers of a module of diffusers: its own, or those that it has for the text.

        fused: whether its processor calls the joined projection where `fuse_qkv_projections` made one.
        """
        names = ("add_q_proj", "add_k_proj", "add_v_proj") if text else ("to_q", "to_k", "to_v")
        joined = "to_added_qkv" if text else "to_qkv"
        norms = ("norm_added_q", "norm_added_k") if text else ("norm_q", "norm_k")
        if fused and getattr(attn, "fused_projections", False) and hasattr(attn, joined):
            project = self.product(getattr(attn, joined))
        else:
            project = tuple(self.product(getattr(attn, name)) for name in names)
        return SelfAttention(
            project, self.out(attn, text), attn.heads, norms=norms_of(attn, *norms), rope=rope, **more
        )

    def out(self, attn: nn.Module, text: bool = False) -> Product | None:
        """The product behind an attention, None where it has none."""
        out = getattr(attn, "to_add_out" if text else "to_out", None)
        if out is None or isinstance(out, nn.Linear) or not isinstance(out, nn.ModuleList):
            return None if out is None else self.product(out)
        drops = len(out) > 1 and foreign_dropout(out[1]) is not None
        return nn.Sequential(*out) if drops else self.product(out[0])


def norms_of(attn: nn.Module, *names: str) -> tuple[nn.Module, nn.Module] | None:
    """Norms of query and key, None where there are none."""
    of_query, of_key = (getattr(attn, name, None) for name in names)
    return None if of_query is None else (of_query, of_key)


class ModuleSpec(Spec):
    """The spec of a block of diffusers that is taken apart.

    Example:
        >>> class MySpec(ModuleSpec):
        ...     plain = {"norm1": nn.LayerNorm, "norm2": nn.LayerNorm}
        ...
        ...     def width(self, block):
        ...         return block.norm1.normalized_shape[0]
    """

    plain: dict[str, type]
    """Names of the modules that the routed block does not call, and what they must be."""
    processors: tuple[type, ...] = ()
    """What the processors of its attentions may be: they are not called either."""

    def __init__(self):
        remember(*self.plain.values(), *self.processors)

    def inspect(self, block: nn.Module) -> Parts:
        reason = self._refused(block)
        if reason is not None:
            return Parts(reason)
        parts = Parts(None)
        for name, module in block.named_modules(remove_duplicate=False):
            if isinstance(module, nn.Linear) or hasattr(module, "base_layer"):
                why = plain_linear(module)
                if why is None:
                    parts.raw.add(id(module))
                parts.slow = parts.slow or (why and f"{name}: {why}")
            elif type(module) is FeedForward and foreign_mlp(module) is None:
                if affine_linear(module.net[2]) is None:
                    parts.affine.add(id(module))
        return parts

    def _refused(self, block: nn.Module) -> str | None:
        for name, cls in self.plain.items():
            module = block.get_submodule(name) if _has(block, name) else None
            if module is not None and (why := _bypassed(module, cls)):
                return f"{name}: {why}, and a routed block does not call it"
        for name, module in block.named_modules():
            processor = getattr(module, "processor", None)
            if processor is not None and type(processor) not in self.processors:
                return f"{name}: its processor is {type(processor).__name__}, and a routed block calls none"
            if getattr(processor, "_parallel_config", None) is not None:
                return f"{name}: context parallelism, and a routed block keeps to one device"
        return next((why for cls in self.processors if (why := patched(cls))), None)

    def unsupported_reason(self, block: nn.Module) -> str | None:
        return self._refused(block)

    def slow_reason(self, block: nn.Module) -> str | None:
        found: Parts = inspected(block)
        return found.refused or found.slow or "norms and positions of query and key are computed by torch"

    def refuse(self, block: nn.Module, **given: Any) -> Parts:
        """The block's parts; a ValueError where they, or arguments that a routed block has no use for, do not
        allow that."""
        found: Parts = inspected(block)
        if found.refused:
            raise ValueError(f"{vars(block)['_diffratio'].name}: {found.refused}; undo that")
        for name, value in given.items():
            if value is not None and value != {}:
                what = f" ({', '.join(map(str, value))})" if isinstance(value, dict) else ""
                raise ValueError(f"{name}{what} is not supported by a routed block")
        return found


def _has(block: nn.Module, name: str) -> bool:
    for part in name.split("."):
        block = block._modules.get(part)
        if block is None:
            return False
    return True


def _bypassed(module: nn.Module, cls: type) -> str | None:
    """Why a module does more than the routed block does in its place, None where it does not."""
    if type(module) is not cls:
        return f"it is a {type(module).__name__}, not a {cls.__name__}"
    reason = None if moves_arguments(module) and not module._parameters else hooked(module)
    return reason or patched(cls)


def told(block: nn.Module, spec: Spec) -> Any:
    """What `Spec.layout` said of the call of the model that is running."""
    told = vars(block)["_diffratio"].model.told
    if type(spec) not in told:
        raise RuntimeError(
            f"{vars(block)['_diffratio'].name}: a {type(block).__name__} is not told which of its tokens are "
            "text; call the model itself, not its forward or its blocks"
        )
    return told[type(spec)]


def span(
    block: nn.Module, x: Tensor, start: int, stop: int | None, valid: Tensor | None = None
) -> Layout | None:
    """`Layout.span`, made once for all blocks of a call of the model; None where all tokens are routed."""
    stop = x.shape[1] if stop is None else stop
    if start == 0 and stop == x.shape[1]:
        return None
    memo = vars(block)["_diffratio"].model.memo
    key = ("span", x.shape[:2], start, stop, id(valid))
    if memo is None or torch.compiler.is_compiling():
        return Layout.span(x, start, stop, valid)
    if key not in memo:
        memo[key] = Layout.span(x, start, stop, valid), valid  # kept: its id stays its own
    return memo[key][0]


def pairs(rope: tuple[Tensor, Tensor] | None, start: int = 0, stop: int | None = None) -> Rope | None:
    """cos and sin [S, d] in which every angle stands twice, side by side."""
    if rope is None:
        return None
    cos, sin = (table[None, start:stop, None, 0::2] for table in rope)
    return Rope(cos, sin)


def per_token(modulation: Tensor) -> tuple[Tensor, Tensor | None]:
    """Modulation and groups of a `Stream`: of [B, 6, D] none, of [B, N, 6, D] one for each token."""
    if modulation.dim() == 3:
        return modulation, None
    groups = torch.arange(modulation.shape[:2].numel(), device=modulation.device)
    return modulation.flatten(0, 1), groups.view(modulation.shape[:2])


def keys_values(
    block: nn.Module,
    attn: nn.Module,
    text: Tensor,
    norm: nn.Module,
    *names: str,
    joined: str | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """Keys, normed, and values [B, M, 2, D] of a text; inside of `cache_text` it is projected once.

    Args:
        block: a routed one.
        attn: of the block.
        text: [B, M, .].
        norm: of keys.
        names: of attn's projections to keys and to values.
        joined: of both in one, where `fuse_qkv_projections` made one that attn's processor calls.
        order: [B, M], which puts the tokens that count first.
    """
    model = vars(block)["_diffratio"].model
    if joined is not None and attn.fused_projections:
        both = getattr(attn, joined)(text).unflatten(-1, (2, -1))
    else:
        both = keys_values_of(*(getattr(attn, name) for name in names), text, order, model)
    keys, values = both.unbind(2)
    return torch.stack([norm(keys), values], dim=2)


def zero_modulation(norm: nn.Module, temb: Tensor, parts: int = 6) -> Tensor:
    """[B, 6, D] of an AdaLayerNormZero; of three parts (AdaLayerNormZeroSingle) twice the same."""
    modulation = norm.linear(norm.silu(temb)).unflatten(-1, (parts, -1))
    return modulation if parts == 6 else torch.cat([modulation, modulation], dim=1)


def clipped(x: Tensor | None) -> Tensor | None:
    """As blocks of diffusers do in fp16."""
    return x if x is None or x.dtype != torch.float16 else x.clip(-65504, 65504)


def text_and_image(image: Tensor, text: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """What most joint blocks return."""
    return clipped(text), clipped(image)
