"""What the specs of diffusers' blocks share: a block is taken apart into the bundles of the routed block.

Modules that the routed block does not call (attention, norms, an MLP taken apart) must be what their class
says: a spec names them, and whoever hooks, patches or replaces one is told. Others are called as they are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Branch, CrossAttention, Layout, Rope, Valid, fold
from diffratio_kernels.types import PackedRows

from .attention_modules import by_count, normed_by
from .inspection import hooked, moves_arguments, patched, plain_linear, remember
from .mlp_modules import Layers, activation_of, layers_of
from .norms import plain_norm
from .parts import OWN, Names, Parts
from .registry import Spec, inspected
from .text_mask import keys_values_of, text_lengths


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
    dense: dict[str, str] = {}
    """Parts of a model whose blocks are left dense, by their names, and why."""

    def __init__(self):
        for classes in self.plain.values():
            remember(*(classes if isinstance(classes, tuple) else (classes,)))
        remember(*self.processors, *self.mlps)

    def width(self, block: nn.Module) -> int:
        """Of what its attention is given."""
        return next(child.query_dim for child in block.children() if hasattr(child, "query_dim"))

    def leave_dense(self, name: str, block: nn.Module) -> str | None:
        return next((why for part, why in self.dense.items() if part in name.split(".")), None)

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


def once(block: nn.Module, key: tuple, make: Callable[[], Any], mask: Tensor | None = None) -> Any:
    """What `make` gives, once for all blocks of a call of the model.

    Args:
        block: a routed one.
        key: of what is made.
        mask: whose values it is made of.
    """
    memo = vars(block)["_diffratio"].model.memo
    if memo is None or torch.compiler.is_compiling():
        return make()
    key = *key, id(mask)
    if key not in memo:
        memo[key] = make(), mask  # kept: its id stays its own
    return memo[key][0]


def span(
    block: nn.Module, x: Tensor, start: int, stop: int | None, mask: Tensor | None = None
) -> Layout | None:
    """`Layout.span` by a `key_mask`; None where all tokens are routed."""
    stop = x.shape[1] if stop is None else stop
    if start == 0 and stop == x.shape[1]:
        return None
    valid = None if mask is None else mask.flatten(1)
    return once(block, ("span", x.shape[:2], start, stop), lambda: Layout.span(x, start, stop, valid), mask)


def counting(block: nn.Module, mask: Tensor | None, start: int = 0, stop: int | None = None) -> Valid | None:
    """Which tokens from start to stop count by a `key_mask`."""
    if mask is None:
        return None
    return once(block, ("counting", start, stop), lambda: Valid.of(mask.flatten(1)[:, start:stop]), mask)


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
    """`Layout.ragged`; a `span` where all samples are alike."""
    whole = sum(stop - start for start, stop in (routed[0], pinned[0])) == x.shape[1]
    if whole and len({*routed}) == len({*pinned}) == 1:
        return span(block, x, *routed[0])
    return once(block, ("ragged", x.shape[:2]), lambda: Layout.ragged(x, routed, pinned))


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
    names: Names | None = None,
    joined: str | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """Keys, normed, and values [B, M, 2, D] of a text; inside of `cache_text` it is projected once.

    Args:
        block: a routed one.
        attn: of the block.
        text: [B, M, .].
        names: of attn's layers; None: `OWN`.
        joined: projection of both, where `fuse_qkv_projections` made one that attn's processor calls.
        order: [B, M], which puts the tokens that count first.
    """
    model, names = vars(block)["_diffratio"].model, OWN if names is None else names
    if joined is not None and attn.fused_projections:
        both = getattr(attn, joined)(text).unflatten(-1, (2, -1))
    else:
        both = keys_values_of(*(getattr(attn, name) for name in names.project[1:]), text, order, model)
    keys, values = both.unbind(2)
    return torch.stack([normed_by(getattr(attn, names.norms[1]), keys), values], dim=2)


def text_attention(
    block: nn.Module, parts: Parts, attn: nn.Module, text: Tensor, mask: Tensor | None
) -> CrossAttention | Branch:
    """Attention to a text [B, M, .] by its products where the mask leaves tokens out, else by the module.

    mask: as of `text_lengths`.
    """
    known = (None, None) if mask is None else text_lengths(mask, vars(block)["_diffratio"].model)
    if known is None:
        return lambda hidden, rows: by_count(attn, hidden, rows, text, mask)
    order, lengths = known
    return parts.cross(attn, keys_values(block, attn, text, order=order), lengths)


def scales_and_gates(
    modulation: Tensor, weight1: Tensor | None = None, weight2: Tensor | None = None
) -> Tensor:
    """[.., 6, D] of scale1, gate1, scale2, gate2 [.., 4 D] around norms with weights; gates are in front of
    tanh."""
    scale1, gate1, scale2, gate2 = modulation.chunk(4, dim=-1)
    (shift1, scale1), (shift2, scale2) = fold(scale1, weight1), fold(scale2, weight2)
    return torch.stack([shift1, scale1, gate1.tanh(), shift2, scale2, gate2.tanh()], dim=-2)


def six(modulation: Tensor) -> Tensor:
    """[.., 6, D], of three parts [.., 3, D] twice the same."""
    return modulation if modulation.shape[-2] == 6 else torch.cat([modulation, modulation], dim=-2)


def zero_modulation(norm: nn.Module, temb: Tensor, parts: int = 6) -> Tensor:
    """[B, 6, D] of an AdaLayerNormZero, or of an AdaLayerNormZeroSingle, which has three parts."""
    return six(norm.linear(norm.silu(temb)).unflatten(-1, (parts, -1)))


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
