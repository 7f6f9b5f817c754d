"""Krea 2: one sequence [text, image], RMS norms that multiply by 1 + weight, query heads that share keys and
values, and a sigmoid gate on what attention gives."""

import torch
from diffusers.models.transformers.transformer_krea2 import (
    Krea2Attention,
    Krea2AttnProcessor,
    Krea2RMSNorm,
    Krea2SwiGLU,
    Krea2TransformerBlock,
)

from diffratio_kernels.blocks.stream import Call, Stream, fold

from .mlp_modules import Layers
from .modules import ModuleSpec, key_mask, pairs, span, told
from .registry import register_block_spec


class Krea2Spec(ModuleSpec):
    timestep_units = "noise"
    plain = {"norm1": Krea2RMSNorm, "norm2": Krea2RMSNorm, "attn": Krea2Attention}
    processors = (Krea2AttnProcessor,)
    mlps = {Krea2SwiGLU: Layers(("gate", "up"), "down")}

    def width(self, block):
        return block.norm1.dim

    def layout(self, model, given):
        """How many tokens of text stand in front."""
        return given["encoder_hidden_states"].shape[1]

    def bind(self, block, hidden_states, temb, image_rotary_emb, attention_mask=None):
        parts, attn, x = self.refuse(block), block.attn, hidden_states
        valid = key_mask("encoder_attention_mask", attention_mask)
        modulation = (temb.unflatten(-1, (6, -1)) + block.scale_shift_table)[:, 0].expand(x.shape[0], -1, -1)
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation.unbind(1)
        shift1, scale1 = fold(scale1, 1 + block.norm1.weight, shift1)
        shift2, scale2 = fold(scale2, 1 + block.norm2.weight, shift2)
        attention = parts.attention(
            attn, pairs(image_rotary_emb), heads=attn.num_heads, kv_heads=attn.num_kv_heads,
            gate=parts.product(attn.to_gate),
        )  # fmt: skip
        modulation = torch.stack([shift1, scale1, gate1, shift2, scale2, gate2], dim=1)
        return Call(
            Stream(x, modulation, attention, parts.mlp(block.ff), block.norm1.eps, block.norm2.eps, "rms"),
            layout=span(block, x, told(block, self), None, valid),
        )


register_block_spec(Krea2TransformerBlock, Krea2Spec())
