"""diffusers' BasicTransformerBlock as PixArt (ada_norm_single) and DiT (ada_norm_zero) use it."""

import inspect
from dataclasses import dataclass
from functools import partial

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Call, CrossAttention, Mlp, SelfAttention, Stream
from diffratio_kernels.types import Activation, Linear, PackedRows, Product

from .attention_modules import by_count, foreign_attention, product_of
from .inspection import (
    affine_linear,
    bias_of,
    hooked,
    moves_arguments,
    patched_forward,
    plain_linear,
    remember,
)
from .mlp_modules import foreign_mlp, projected
from .registry import Spec, inspected, register_block_spec
from .text_mask import keys_values_of, text_lengths

_signature = inspect.signature(BasicTransformerBlock.forward)
remember(AdaLayerNormZero)
_LINEARS = (
    *(f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj", "ff.net.2", "attn2.to_q", "attn2.to_out.0",
)  # fmt: skip


@dataclass(slots=True)
class _Inspected:
    """What a block's modules are: why one is not the plain one, None where it is."""

    attn1: str | None
    attn2: str | None
    ff: str | None
    fc2: str | None
    """Why fc2 is not affine."""
    activation: Activation | None
    """Of an MLP that is known."""
    norms: str | None
    layer_norms: list[nn.Module]
    modules: dict[str, nn.Module | None]
    """The block's own: nn.Module takes most of a microsecond to give one by its name."""
    linears: dict[str, tuple[nn.Module, bool]]
    """With whether its weight is the whole of what it computes."""
    slow: str | None


class BasicTransformerSpec(Spec):
    """One stream, cross-attention after attention."""

    def unsupported_reason(self, block):
        if block.norm_type not in ("ada_norm_single", "ada_norm_zero"):
            return f"norm_type {block.norm_type!r} is not adaLN"
        if block.norm_type == "ada_norm_zero" and block.attn2 is not None:
            return "ada_norm_zero with cross-attention normalises the cross-attention input"
        if block.pos_embed is not None:
            return "positions are added inside the block"
        if block.only_cross_attention or hasattr(block, "fuser"):
            return "only_cross_attention and gated attention are not adaLN self-attention"
        if any(type(norm) is not nn.LayerNorm or norm.weight is not None for norm in _norms(block)[:2]):
            return "its norms are not layer norms without an affine part"
        return None

    def width(self, block):
        return block.dim

    def timestep(self, block, *args, **kwargs):
        """DiT's blocks are given the timestep itself, PixArt's an embedding of it."""
        if block.norm_type != "ada_norm_zero":
            return None
        return _signature.bind(block, *args, **kwargs).arguments.get("timestep")

    def inspect(self, block):
        modules = block.named_modules(remove_duplicate=False)
        linears = {name: (linear, plain_linear(linear)) for name, linear in modules if name in _LINEARS}
        attn1 = foreign_attention("attn1", block.attn1)
        attn2 = None if block.attn2 is None else foreign_attention("attn2", block.attn2)
        ff = foreign_mlp(block.ff)
        norms = next((why for norm in _norms(block) if (why := _foreign_norm(norm))), None)
        linear = next((f"{name}: {why}" for name, (_, why) in linears.items() if why), None)
        return _Inspected(
            attn1=attn1,
            attn2=attn2,
            ff=ff,
            fc2=None if ff else affine_linear(block.ff.net[2]),
            activation=None if ff else projected(block.ff),
            norms=norms,
            layer_norms=_norms(block)[:2],
            modules=dict(block._modules),
            linears={name: (linear, why is None) for name, (linear, why) in linears.items()},
            slow=attn1 or attn2 or ff or linear,
        )

    def slow_reason(self, block):
        return inspected(block).slow

    def bind(
        self,
        block,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        timestep=None,
        cross_attention_kwargs=None,
        class_labels=None,
        added_cond_kwargs=None,
    ):
        found: _Inspected = inspected(block)
        if found.norms:
            raise ValueError(
                f"norms: a routed block computes its layer norms itself, but {found.norms}; undo that"
            )
        if attention_mask is not None:
            raise ValueError("attention_mask over image tokens is not supported by a routed block")
        kwargs = cross_attention_kwargs
        if kwargs:
            kwargs = dict(kwargs)
            if kwargs.pop("gligen", None) is not None:
                raise ValueError("cross_attention_kwargs['gligen'] is not supported by a routed block")
        own = _Call(block, found, kwargs or {}, encoder_hidden_states, encoder_attention_mask)
        if block.norm_type == "ada_norm_single":
            modulation = block.scale_shift_table + timestep.reshape(hidden_states.shape[0], 6, -1)
        else:
            norm = block.norm1
            embedded = norm.emb(timestep, class_labels, hidden_dtype=hidden_states.dtype)
            modulation = norm.linear(norm.silu(embedded)).unflatten(-1, (6, -1))
        first, second = found.layer_norms
        image = Stream(hidden_states, modulation, own.self_attention(), own.mlp(), first.eps, second.eps)
        return Call(image, None if found.modules.get("attn2") is None else own.cross_attention())


@dataclass(slots=True)
class _Call:
    """One call of a block: its modules, what they were found to be, and what belongs to attention."""

    block: nn.Module
    found: _Inspected
    kwargs: dict
    text: Tensor | None
    mask: Tensor | None

    def _products(self, part: str, *names: str) -> list[Product]:
        return [product_of(*self.found.linears[f"{part}.{name}"]) for name in names]

    def self_attention(self):
        """attn1 by its products, or the module on the kept rows of each sample."""
        attn = self.found.modules["attn1"]
        if self.found.attn1 or self.kwargs:
            return partial(by_count, partial(attn, **self.kwargs))
        *project, out = self._products("attn1", "to_q", "to_k", "to_v", "to_out.0")
        return SelfAttention(tuple(project), out, attn.heads)

    def cross_attention(self):
        """attn2 by its products on the text's keys and values, or the module."""
        attn = self.found.modules["attn2"]
        if self.found.attn2 or self.kwargs or self.text is None:
            return self._cross_attend
        order, lengths, model = None, None, self.block._diffratio.model
        if self.mask is not None:
            known = text_lengths(self.mask, model)
            if known is None:  # it does more than leave tokens out
                return self._cross_attend
            order, lengths = known
        query, out = self._products("attn2", "to_q", "to_out.0")
        to_k, to_v = attn._modules["to_k"], attn._modules["to_v"]
        keys_values = keys_values_of(to_k, to_v, self.text, order, model)
        return CrossAttention(query, out, attn.heads, keys_values, lengths)

    def _cross_attend(self, hidden: Tensor, rows: PackedRows) -> Tensor:
        def attn2(samples: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
            return self.block.attn2(samples, encoder_hidden_states=text, attention_mask=mask, **self.kwargs)

        return by_count(attn2, hidden, rows, self.text, self.mask)

    def mlp(self):
        """The MLP by its products where both bins may run fc2 once, or the module."""
        if self.found.ff or self.found.fc2 or self.block._chunk_size is not None:
            return self._feed_forward
        fc1, fc2 = self._products("ff", "net.0.proj", "net.2")
        bias = None if isinstance(fc2, Linear) else bias_of(fc2)
        return Mlp(fc1, fc2, bias, self.found.activation)

    def _feed_forward(self, normed: Tensor, rows: PackedRows) -> Tensor:
        chunk = self.block._chunk_size
        if chunk is None:
            return by_count(self.block.ff, normed, rows)
        # diffusers wants chunks that divide the tokens; rows of an MLP do not know of each other
        return torch.cat([self.block.ff(part) for part in normed.split(chunk)])


def _foreign_norm(norm: nn.Module) -> str | None:
    """Why a norm is not what the routed block computes in its place, None where it is."""
    if type(norm) not in (nn.LayerNorm, AdaLayerNormZero):
        return f"one is a {type(norm).__name__}"
    if getattr(norm, "weight", None) is not None:
        return "one has an affine part"
    reason = None if moves_arguments(norm) else hooked(norm)
    return f"of one {reason}" if reason else patched_forward(type(norm))


def _norms(block: nn.Module) -> list[nn.Module]:
    """What the routed block computes itself: its two layer norms, and in DiT what holds the first."""
    if block.norm_type == "ada_norm_single":
        return [block.norm1, block.norm2]
    return [block.norm1.norm, block.norm3, block.norm1]


register_block_spec(BasicTransformerBlock, BasicTransformerSpec())
