"""What the specs of diffusers' blocks share: a block is taken apart into the bundles of the routed block.

Modules that the routed block does not call (attention, norms, an MLP taken apart) must be what their class
says: a spec names them, and whoever hooks, patches or replaces one is told. Others are called as they are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Layout, Mlp, Rope, SelfAttention, fold
from diffratio_kernels.types import Activation, PackedRows, Product, RowNorm

from .attention_modules import by_count, product_of
from .inspection import foreign_dropout, hooked, moves_arguments, patched, plain_linear, remember
from .mlp_modules import Layers, activation_of, layers_of, taken_apart
from .norms import head_norm, plain_norm, row_norm
from .registry import Spec, inspected
from .text_mask import keys_values_of


@dataclass(slots=True)
class Parts:
    """What a block's modules were found to be."""

    refused: str | None
    """Why the block cannot be routed as it is now."""
    raw: set[int] = field(default_factory=set)
    """ids of the Linears whose weights are all that they compute."""
    mlps: dict[int, Layers] = field(default_factory=dict)
    """ids of the MLPs that are two products around a known activation."""
    activations: dict[int, Activation] = field(default_factory=dict)
    """ids of the modules that are known activations."""
    norm_weights: set[int] = field(default_factory=set)
    """ids of the norms whose weights are all that they compute."""
    slow: str | None = None
    """The first Linear that is not raw, and why."""

    def product(self, module: nn.Module) -> Product:
        """A Linear's weights where they are the whole truth, else the module itself."""
        return product_of(module, id(module) in self.raw)

    def mlp(self, ff: nn.Module) -> Mlp | nn.Module:
        """The MLP by its products, or the module."""
        layers = self.mlps.get(id(ff))
        return ff if layers is None else taken_apart(ff, layers, self.product)

    def attention(
        self,
        attn: nn.Module,
        rope: Rope | None = None,
        text: bool = False,
        fused: bool = True,
        heads: int | None = None,
        **more,
    ) -> SelfAttention:
        """Attention by the layers of a module of diffusers: its own, or those that it has for the text.

        fused: whether its processor calls the joined projection where `fuse_qkv_projections` made one.
        heads: where the module calls them otherwise.
        """
        names = ("add_q_proj", "add_k_proj", "add_v_proj") if text else ("to_q", "to_k", "to_v")
        joined = "to_added_qkv" if text else "to_qkv"
        names_of_norms = ("norm_added_q", "norm_added_k") if text else ("norm_q", "norm_k")
        norms = self.norms(attn, *names_of_norms, more.get("across_heads", False))
        if fused and getattr(attn, "fused_projections", False) and hasattr(attn, joined):
            project = self.product(getattr(attn, joined))
        else:
            project = tuple(self.product(getattr(attn, name)) for name in names)
        heads = attn.heads if heads is None else heads
        return SelfAttention(project, self.out(attn, text), heads, norms=norms, rope=rope, **more)

    def norms(self, attn: nn.Module, of_query: str, of_key: str, across_heads: bool = False):
        """Norms of query and key: by their weights where these are the whole truth, else the modules; None
        where there are none."""
        query, key = (getattr(attn, name, None) for name in (of_query, of_key))
        if query is None:
            return None
        known = {id(query), id(key)} <= self.norm_weights and not isinstance(query, nn.Identity)
        if not known or query.eps != key.eps:
            return query, key
        return head_norm(query, key, across_heads)

    def row_norm(self, norm: nn.Module | None) -> RowNorm | nn.Module | None:
        """A norm of rows, as `norms` are: of a branch before its gate, or before a product."""
        if norm is None or id(norm) not in self.norm_weights:
            return norm
        return None if isinstance(norm, nn.Identity) else row_norm(norm)

    def out(self, attn: nn.Module, text: bool = False) -> Product | None:
        """The product behind an attention, None where it has none."""
        out = getattr(attn, "to_add_out" if text else "to_out", None)
        if out is None or isinstance(out, nn.Linear) or not isinstance(out, nn.ModuleList):
            return None if out is None else self.product(out)
        drops = len(out) > 1 and foreign_dropout(out[1]) is not None
        return nn.Sequential(*out) if drops else self.product(out[0])


class ModuleSpec(Spec):
    """The spec of a block of diffusers that is taken apart.

    Example:
        >>> class MySpec(ModuleSpec):
        ...     plain = {"norm1": nn.LayerNorm, "norm2": nn.LayerNorm}
        ...
        ...     def width(self, block):
        ...         return block.norm1.normalized_shape[0]
    """

    plain: dict[str, type | tuple[type, ...]]
    """Names of the modules that the routed block does not call, and what they must be (one of several)."""
    path = "operators"
    mlps: dict[type, Layers] = {}
    """Classes of MLPs besides diffusers' FeedForward."""
    processors: tuple[type, ...] = ()
    """What the processors of its attentions may be: they are not called either."""

    def __init__(self):
        for classes in self.plain.values():
            remember(*(classes if isinstance(classes, tuple) else (classes,)))
        remember(*self.processors, *self.mlps)

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
            elif plain_norm(module) or (type(module) is nn.Identity and not hooked(module)):
                parts.norm_weights.add(id(module))
            elif activation := activation_of(module):
                parts.activations[id(module)] = activation
            elif layers := layers_of(module, self.mlps):
                parts.mlps[id(module)] = layers
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
        backends = {getattr(m.processor, "_attention_backend", None) for m in block.modules() if _attends(m)}
        other = next((backend for backend in backends if backend is not None), None)
        if found.refused or found.slow:
            return found.refused or found.slow
        if other is not None:
            return f"diffusers' attention backend {getattr(other, 'value', other)!r} is not used, but ours"
        return None

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


def _attends(module: nn.Module) -> bool:
    return getattr(module, "processor", None) is not None


def _has(block: nn.Module, name: str) -> bool:
    for part in name.split("."):
        block = block._modules.get(part)
        if block is None:
            return False
    return True


def _bypassed(module: nn.Module, classes: type | tuple[type, ...]) -> str | None:
    """Why a module does more than the routed block does in its place, None where it does not."""
    classes = classes if isinstance(classes, tuple) else (classes,)
    if type(module) not in classes:
        wanted = " or a ".join(cls.__name__ for cls in classes)
        return f"it is a {type(module).__name__}, not a {wanted}"
    reason = None if moves_arguments(module) and not module._parameters else hooked(module)
    inside = None if hasattr(module, "processor") else _norms_inside(module)
    return reason or patched(type(module)) or inside


def _norms_inside(module: nn.Module) -> str | None:
    """Why a norm inside of an adaptive norm, of which the modulation alone is called, does more than its
    class says."""
    for name, child in module.named_modules():
        if "norm" in name.rpartition(".")[2] and (why := hooked(child)):
            return f"{name}: {why}"
    return None


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
    """`Layout.span`, made once for all blocks of a call of the model; None where all tokens are routed.

    valid: a `key_mask`."""
    stop = x.shape[1] if stop is None else stop
    if start == 0 and stop == x.shape[1]:
        return None
    memo = vars(block)["_diffratio"].model.memo
    key = ("span", x.shape[:2], start, stop, id(valid))
    if memo is not None and not torch.compiler.is_compiling() and key in memo:
        return memo[key][0]
    layout = Layout.span(x, start, stop, None if valid is None else valid.flatten(1))
    if memo is None or torch.compiler.is_compiling():
        return layout
    memo[key] = layout, valid  # kept: its id stays its own
    return layout


def key_mask(name: str, mask: Tensor | None) -> Tensor | None:
    """A mask [B, S] or [B, 1, 1, S] of the tokens that count, if it is one that says no more than that."""
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise ValueError(
            f"{name}: a mask of {mask.dtype} is added to the scores of attention and leaves no token out; a "
            "routed block takes a mask of bools"
        )
    if mask.dim() not in (2, 4) or mask.shape[1:-1] not in ((), (1, 1)):
        raise ValueError(f"{name}: a mask of pairs of tokens {tuple(mask.shape)} is not supported")
    return mask


def ragged(
    block: nn.Module, x: Tensor, routed: list[tuple[int, int]], pinned: list[tuple[int, int]]
) -> Layout | None:
    """`Layout.ragged`, made once for all blocks of a call of the model; a `span` where all samples are
    alike."""
    whole = sum(stop - start for start, stop in (routed[0], pinned[0])) == x.shape[1]
    if whole and len({*routed}) == len({*pinned}) == 1:
        return span(block, x, *routed[0])
    memo = vars(block)["_diffratio"].model.memo
    if memo is None or torch.compiler.is_compiling():
        return Layout.ragged(x, routed, pinned)
    key = ("ragged", x.shape[:2])
    if key not in memo:
        memo[key] = Layout.ragged(x, routed, pinned)
    return memo[key]


def pairs(rope: tuple[Tensor, Tensor] | None, start: int = 0, stop: int | None = None) -> Rope | None:
    """cos and sin [S, d] in which every angle stands twice, side by side."""
    if rope is None:
        return None
    cos, sin = (table[None, start:stop, None, 0::2] for table in rope)
    return Rope(cos, sin)


def halves(rope: tuple[Tensor, Tensor] | None, start: int = 0, stop: int | None = None) -> Rope | None:
    """cos and sin [S, d], both halves of the channels alike."""
    if rope is None:
        return None
    cos, sin = (table[None, start:stop, None, : table.shape[-1] // 2] for table in rope)
    return Rope(cos, sin, halves=True)


def complex_rope(table: Tensor | None, start: int = 0, stop: int | None = None) -> Rope | None:
    """Complex numbers [S, d/2] of length 1, or [1 or B, S, d/2]."""
    if table is None:
        return None
    table = (table if table.dim() == 3 else table[None])[:, start:stop, None]
    return Rope(table.real, table.imag)


def modulated_attention(norm: nn.Module, modulation: Tensor, attend: Callable, *per_sample: Tensor | None):
    """The branch gate * attend(norm(hidden) * (1 + scale) + shift) between attention and MLP.

    Args:
        norm: without an affine part.
        modulation: [B, 3, D] shift, scale, gate; with groups [G, 3, D].
        attend: given samples [b, k, D] and their parts of `per_sample`.
    """

    def branch(hidden: Tensor, rows: PackedRows) -> Tensor:
        shift, scale, gate = modulation[rows.owner].unbind(1)
        normed = (norm(hidden) * (1 + scale) + shift).to(hidden.dtype)
        return (gate * by_count(attend, normed, rows, *per_sample)).to(hidden.dtype)

    return branch


def per_token(modulation: Tensor) -> tuple[Tensor, Tensor | None]:
    """Modulation and groups of a `Stream`: of [B, 6, D] or [B, 1, 6, D] none, of [B, N, 6, D] one for each
    token."""
    if modulation.dim() == 3 or modulation.shape[1] == 1:
        return modulation.flatten(0, -3), None
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


def scales_and_gates(
    modulation: Tensor, weight1: Tensor | None = None, weight2: Tensor | None = None
) -> Tensor:
    """[.., 6, D] of scale1, gate1, scale2, gate2 [.., 4 D] around norms with weights; gates are in front of
    tanh."""
    scale1, gate1, scale2, gate2 = modulation.chunk(4, dim=-1)
    (shift1, scale1), (shift2, scale2) = fold(scale1, weight1), fold(scale2, weight2)
    return torch.stack([shift1, scale1, gate1.tanh(), shift2, scale2, gate2.tanh()], dim=-2)


def zero_modulation(norm: nn.Module, temb: Tensor, parts: int = 6) -> Tensor:
    """[B, 6, D] of an AdaLayerNormZero; of three parts (AdaLayerNormZeroSingle) twice the same."""
    modulation = norm.linear(norm.silu(temb)).unflatten(-1, (parts, -1))
    return modulation if parts == 6 else torch.cat([modulation, modulation], dim=1)


def two_kinds(x: Tensor, count: int) -> Tensor:
    """Groups [B, N] of the first tokens of each sample and of the others: 0 and 1, 2 and 3, ..."""
    samples, places = (torch.arange(n, device=x.device) for n in x.shape[:2])
    return 2 * samples[:, None] + (places >= count)


def clipped(x: Tensor | None, _: Tensor | None = None) -> Tensor | None:
    """As blocks of diffusers do in fp16; as an output, of the image."""
    return x if x is None or x.dtype != torch.float16 else x.clip(-65504, 65504)


def image_and_text(image: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What other joint blocks return, which do not clip."""
    return image, text


def text_first(image: Tensor, text: Tensor | None) -> tuple[Tensor | None, Tensor]:
    return text, image


def text_and_image(image: Tensor, text: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """What most joint blocks return."""
    return clipped(text), clipped(image)
