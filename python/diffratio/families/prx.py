"""PRX: one stream, whose attention takes keys and values of a text besides its own."""

import torch
from diffusers.models.transformers.transformer_prx import PRXAttention, PRXAttnProcessor2_0, PRXBlock
from torch import nn

from diffratio_kernels.blocks.stream import Call, KeysValues, Mlp, Rope, Stream
from diffratio_kernels.types import Activation

from .modules import ModuleSpec, counting
from .parts import Names, Parts
from .registry import register_block_spec


class PRXSpec(ModuleSpec):
    timestep_units = "noise"
    plain = {
        "img_pre_norm": nn.LayerNorm,
        "attention": PRXAttention,
        "post_attention_layernorm": nn.LayerNorm,
    }
    processors = (PRXAttnProcessor2_0,)

    def width(self, block):
        return block.hidden_size

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb, attention_mask=None,
             **kwargs):  # fmt: skip
        parts, attn = self.refuse(block, kwargs=kwargs), block.attention
        of_text = attn.txt_kv_proj(encoder_hidden_states).unflatten(-1, (2, attn.heads, -1))
        key, value = of_text.unbind(2)
        key = attn.norm_added_k(key)
        text = KeysValues.masked(key, value, counting(block, attention_mask))
        # [B, 1, S, d/2, 2, 2]: a matrix for each pair
        cos, sin = image_rotary_emb[:, 0, :, None, :, :, 0].unbind(-1)
        attention = parts.attention(attn, Rope(cos, sin), Names("img_qkv_proj"), more=text)

        first, second = block.modulation(temb)
        norm1, norm2 = block.img_pre_norm, block.post_attention_layernorm
        modulation = torch.cat([*first, *second], dim=1)
        return Call(Stream(hidden_states, modulation, attention, _mlp(block, parts), norm1.eps, norm2.eps))


def _mlp(block, parts: Parts):
    """By its products, or as the block computes it."""

    def as_it_is(normed, rows):
        return block.down_proj(block.mlp_act(block.gate_proj(normed)) * block.up_proj(normed))

    known = parts.activations.get(id(block.mlp_act))
    if known is None:
        return as_it_is
    gate, up, down = map(parts.product, (block.gate_proj, block.up_proj, block.down_proj))
    return Mlp((gate, up), down, activation=Activation(known.kind, gate="first"))


register_block_spec(PRXBlock, PRXSpec())
