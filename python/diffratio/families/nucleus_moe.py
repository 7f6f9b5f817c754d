"""Nucleus-Image: one stream that attends to a text without queries; in most blocks experts choose their
tokens among those of a sample that are kept."""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_nucleusmoe_image import (
    NucleusMoEAttnProcessor2_0,
    NucleusMoEImageTransformerBlock,
)
from torch import Tensor, nn

from diffratio_kernels.blocks.joint import rotated
from diffratio_kernels.blocks.stream import Call, KeysValues, Stream
from diffratio_kernels.types import PackedRows

from .attention_modules import by_count, normed_by
from .modules import ModuleSpec, clipped, complex_rope, counting
from .registry import register_block_spec


class NucleusMoESpec(ModuleSpec):
    timestep_units = "noise"
    plain = {"pre_attn_norm": nn.LayerNorm, "pre_mlp_norm": nn.LayerNorm, "attn": Attention}
    processors = (NucleusMoEAttnProcessor2_0,)

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             attention_kwargs=None):  # fmt: skip
        given, attn = dict(attention_kwargs or {}), block.attn
        mask = given.pop("attention_mask", None)
        parts = self.refuse(block, attention_kwargs=given)
        of_image, of_text = (None, None) if image_rotary_emb is None else image_rotary_emb
        heads = attn.heads * attn.inner_kv_dim // attn.inner_dim
        more = _keys_values(block, encoder_hidden_states, of_text, mask, heads)
        own = parts.attention(attn, complex_rope(of_image), kv_heads=heads, more=more)
        scale1, gate1, scale2, gate2 = block.img_mod(temb).unflatten(-1, (4, -1)).unbind(1)
        gate1, gate2 = (gate.clamp(-2, 2).tanh() for gate in (gate1, gate2))
        none, mlp = torch.zeros_like(scale1), parts.mlp(block.img_mlp)
        if block.moe_enabled:
            scale2, mlp = none, _experts(block.img_mlp, scale2, temb)
        modulation = torch.stack([none, scale1, gate1, none, scale2, gate2], dim=1)
        eps = block.pre_attn_norm.eps, block.pre_mlp_norm.eps
        return Call(Stream(hidden_states, modulation, own, mlp, *eps), output=clipped)


def _keys_values(block, text: Tensor, rope: Tensor | None, mask: Tensor | None, heads: int) -> KeysValues:
    """Of the text, which is projected anew by every block."""
    attn, context = block.attn, block.encoder_proj(text)
    key, value = (layer(context).unflatten(-1, (heads, -1)) for layer in (attn.add_k_proj, attn.add_v_proj))
    key = normed_by(attn.norm_added_k, key)
    if rope is not None:
        length = key.shape[1]
        rows = PackedRows(torch.arange(key.shape[0] * length, device=key.device), length)
        key = rotated(complex_rope(rope), key.flatten(0, 1), rows).view(key.shape)
    return KeysValues.masked(key, value, counting(block, mask, -key.shape[1]))


def _experts(mlp: nn.Module, scale: Tensor, temb: Tensor):
    """Tokens are chosen by what they were before the modulation."""

    def branch(normed: Tensor, rows: PackedRows) -> Tensor:
        modulated = (normed * (1 + scale[rows.index // rows.tokens])).to(normed.dtype)
        return by_count(lambda *given: mlp(*given[:2], timestep=given[2]), (modulated, normed), rows, temb)

    return branch


register_block_spec(NucleusMoEImageTransformerBlock, NucleusMoESpec())
