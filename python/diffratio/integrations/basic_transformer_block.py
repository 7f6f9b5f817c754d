"""diffusers' BasicTransformerBlock as PixArt (ada_norm_single) and DiT (ada_norm_zero) use it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from diffusers.models.attention import BasicTransformerBlock, _chunked_feed_forward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from diffratio_kernels.ops.two_bin_steps import Linears

from .spec import (
    BlockInputs,
    BlockSpec,
    affine_linear,
    bias_of,
    hooked,
    plain_linear,
    register_block_spec,
)
from .text_cache import parameters_of
from .text_mask import text_lengths

_signature = inspect.signature(BasicTransformerBlock.forward)


class BasicTransformerBlockSpec(BlockSpec):
    def why_not(self, block):
        if block.norm_type not in ("ada_norm_single", "ada_norm_zero"):
            return f"norm_type {block.norm_type!r} is not adaLN"
        if block.norm_type == "ada_norm_zero" and block.attn2 is not None:
            return "ada_norm_zero with cross-attention normalises the cross-attention input"
        if block.pos_embed is not None:
            return "positions are added inside the block"
        if block.only_cross_attention or hasattr(block, "fuser"):
            return "only_cross_attention and gated attention are not adaLN self-attention"
        if any(type(norm) is not nn.LayerNorm or norm.weight is not None for norm in _norms(block)):
            return "its norms are not layer norms without an affine part"
        return None

    def width(self, block):
        return block.dim

    def inputs(self, block, *args, **kwargs):
        call = _signature.bind(block, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        x = given["hidden_states"]
        if any(map(hooked, _norms(block))):
            raise ValueError("norm hooks: a routed block computes its layer norms itself; remove the hooks")
        if given["attention_mask"] is not None:
            raise ValueError("attention_mask over image tokens is not supported by a routed block")
        if block.norm_type == "ada_norm_single":
            modulation = block.scale_shift_table[None] + given["timestep"].reshape(x.shape[0], 6, -1)
            eps, mlp_eps = block.norm1.eps, block.norm2.eps
        else:
            norm = block.norm1
            embedded = norm.emb(given["timestep"], given["class_labels"], hidden_dtype=x.dtype)
            modulation = norm.linear(norm.silu(embedded)).unflatten(-1, (6, -1))
            eps, mlp_eps = norm.norm.eps, block.norm3.eps
        kwargs = dict(given["cross_attention_kwargs"] or {})
        if kwargs.pop("gligen", None) is not None:
            raise ValueError("cross_attention_kwargs['gligen'] is not supported by a routed block")
        context = {
            "encoder_hidden_states": given["encoder_hidden_states"],
            "encoder_attention_mask": given["encoder_attention_mask"],
            "cross_attention_kwargs": kwargs,
        }
        return BlockInputs(x, modulation, eps, mlp_eps, context)

    def self_attention(self, block, normed, inputs):
        return block.attn1(normed, **inputs.context["cross_attention_kwargs"])

    def cross_attention(self, block, hidden, inputs):
        if block.attn2 is None:
            return None
        return block.attn2(
            hidden,
            encoder_hidden_states=inputs.context["encoder_hidden_states"],
            attention_mask=inputs.context["encoder_attention_mask"],
            **inputs.context["cross_attention_kwargs"],
        )

    def mlp(self, block, normed, inputs):
        if block._chunk_size is not None:
            return _chunked_feed_forward(block.ff, normed, block._chunk_dim, block._chunk_size)
        return block.ff(normed)

    def why_not_fused(self, block):
        return _why_not_chain(block, plain_linear)

    def why_not_linears(self, block):
        return _why_not_chain(block, affine_linear)

    def why_not_fused_call(self, block, inputs):
        bias = inputs.context["encoder_attention_mask"]
        if block.attn2 is not None and inputs.context["encoder_hidden_states"] is None:
            return "attn2: no text was given"
        if block.attn2 is None or bias is None or _lengths(bias, inputs) is not None:
            return None
        return "attn2: the text mask does more than leave tokens out"

    def qkv(self, block):
        return [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v]

    def fused_arguments(self, block, inputs, qkv, qkv_bias):
        out, fc1, fc2 = block.attn1.to_out[0], block.ff.net[0].proj, block.ff.net[2]
        arguments = {
            "qkv_weight": qkv,
            "qkv_bias": qkv_bias,
            "out_weight": out.weight,
            "out_bias": out.bias,
            "fc1_weight": fc1.weight,
            "fc1_bias": fc1.bias,
            "fc2_weight": fc2.weight,
            "fc2_bias": fc2.bias,
            "num_heads": block.attn1.heads,
            "eps": inputs.eps,
            "mlp_eps": inputs.mlp_eps,
        }
        if block.attn2 is None:
            return arguments
        cross = block.attn2
        return (
            arguments
            | _text(cross, inputs)
            | {
                "cross_q_weight": cross.to_q.weight,
                "cross_q_bias": cross.to_q.bias,
                "cross_out_weight": cross.to_out[0].weight,
                "cross_out_bias": cross.to_out[0].bias,
            }
        )

    def linears(self, block, inputs):
        qkv, fc2, cross = self.qkv(block), block.ff.net[2], block.attn2
        plain = type(fc2) is nn.Linear  # else, in LoRA, the bias cannot be had apart
        linears = Linears(
            qkv=lambda rows: torch.cat([linear(rows) for linear in qkv], dim=-1),
            out=block.attn1.to_out[0],
            fc1=block.ff.net[0].proj,
            fc2=partial(F.linear, weight=fc2.weight) if plain else fc2,
            fc2_bias=bias_of(fc2),
            fc2_adds_bias=not plain,
            cross_q=None if cross is None else cross.to_q,
            cross_out=None if cross is None else cross.to_out[0],
        )
        return linears, {"num_heads": block.attn1.heads} | ({} if cross is None else _text(cross, inputs))


def _why_not_chain(block: nn.Module, why_not_linear: Callable[[nn.Module], str | None]) -> str | None:
    """Why a block is not the chain of Linears that our operators compute, None where it is."""
    attentions = {"attn1": block.attn1} | ({} if block.attn2 is None else {"attn2": block.attn2})
    for name, attention in attentions.items():
        reason = _why_not_default_attention(attention)
        if reason is not None:
            return f"{name}: {reason}"
    ff = block.ff
    if len(ff.net) != 3 or type(ff.net[0]) is not GELU or ff.net[0].approximate != "tanh":
        return "ff: not a tanh-GELU MLP"
    linears = {
        "attn1.to_q": block.attn1.to_q,
        "attn1.to_k": block.attn1.to_k,
        "attn1.to_v": block.attn1.to_v,
    }
    linears |= {f"{name}.to_out.0": attention.to_out[0] for name, attention in attentions.items()}
    linears |= {"ff.net.0.proj": ff.net[0].proj, "ff.net.2": ff.net[2]}
    if block.attn2 is not None:
        linears["attn2.to_q"] = block.attn2.to_q
    for name, linear in linears.items():
        reason = why_not_linear(linear)
        if reason is not None:
            return f"{name}: {reason}"
    dropouts = {f"{name}.to_out.1": attention.to_out[1] for name, attention in attentions.items()}
    dropouts["ff.net.1"] = ff.net[1]
    if any(not isinstance(dropout, nn.Dropout) or dropout.p > 0 for dropout in dropouts.values()):
        return "it has dropout"
    for name, module in ({"ff": ff, "ff.net.0": ff.net[0]} | dropouts).items():
        reason = hooked(module)
        if reason is not None:
            return f"{name}: {reason}"
    head_dim = block.attn1.inner_dim // block.attn1.heads
    return f"head_dim {head_dim} is not a multiple of 8" if head_dim % 8 else None


def _why_not_default_attention(attention: nn.Module) -> str | None:
    if type(attention) is not Attention:
        return f"a {type(attention).__name__}, not diffusers' Attention"
    if type(attention.processor) is not AttnProcessor2_0:
        return f"its processor is {type(attention.processor).__name__}"
    extras = (
        attention.spatial_norm,
        attention.group_norm,
        attention.norm_q,
        attention.norm_k,
        attention.norm_cross,
    )
    if any(extra is not None for extra in extras) or attention.added_kv_proj_dim is not None:
        return "it has norms or projections of its own"
    if attention.residual_connection or attention.rescale_output_factor != 1.0:
        return "it adds a residual or rescales"
    if attention.inner_dim != attention.out_dim or attention.inner_kv_dim != attention.inner_dim:
        return "its widths differ"
    return hooked(attention)


def _norms(block: nn.Module) -> list[nn.Module]:
    if block.norm_type == "ada_norm_single":
        return [block.norm1, block.norm2]
    return [block.norm1.norm, block.norm3]


def _text(cross: nn.Module, inputs: BlockInputs) -> dict:
    """Keys and values of the text, and how many of its tokens count."""
    text, mask = inputs.context["encoder_hidden_states"], inputs.context["encoder_attention_mask"]
    cache, linears = inputs.text_cache, [cross.to_k, cross.to_v]
    order, lengths = (None, None) if mask is None else _lengths(mask, inputs)

    def project():
        ordered = text if order is None else text.gather(1, order[..., None].expand_as(text))
        return torch.stack([linear(ordered) for linear in linears], dim=2)

    if cache is None or any(map(plain_linear, linears)):
        keys_values = project()
    else:
        given = [text] if order is None else [text, order]
        keys_values = cache(project, *given, *parameters_of(linears))
    return {"context_kv": keys_values, "context_lengths": lengths}


def _lengths(mask: Tensor, inputs: BlockInputs) -> tuple[Tensor, Tensor] | None:
    return text_lengths(mask, comes_again=inputs.text_cache is not None and not mask.is_inference())


register_block_spec(BasicTransformerBlock, BasicTransformerBlockSpec())
