"""Mochi: joint blocks with a narrower text, norms behind every branch, positions on the image alone; the last
block reads its text no more."""

import torch
from diffusers.models.attention_processor import MochiAttention, MochiAttnProcessor2_0
from diffusers.models.transformers.transformer_mochi import (
    MochiLayerNormContinuous,
    MochiModulatedRMSNorm,
    MochiRMSNormZero,
    MochiTransformerBlock,
)

from diffratio_kernels.blocks.stream import Call, Rope, Stream

from .modules import ModuleSpec, counting, image_and_text, scales_and_gates
from .parts import ADDED
from .registry import register_block_spec


class MochiSpec(ModuleSpec):
    timestep_units = "reversed"
    plain = {
        "norm1": MochiRMSNormZero, "norm1_context": (MochiRMSNormZero, MochiLayerNormContinuous),
        "norm3": MochiModulatedRMSNorm, "norm3_context": MochiModulatedRMSNorm, "attn1": MochiAttention,
    }  # fmt: skip
    processors = (MochiAttnProcessor2_0,)

    def width(self, block):
        return block.attn1.to_q.in_features

    def bind(self, block, hidden_states, encoder_hidden_states, temb, encoder_attention_mask,
             image_rotary_emb=None):  # fmt: skip
        parts, attn = self.refuse(block), block.attn1
        rope = None if image_rotary_emb is None else Rope(*(table[None] for table in image_rotary_emb))
        context, last = block.norm1_context, block.context_pre_only
        of_text = _last_modulation(context, temb) if last else _modulation(context, temb)
        eps = [block.norm1.norm.eps, block.norm3.eps]
        image = Stream(
            hidden_states, _modulation(block.norm1, temb), parts.attention(attn, rope, fused=True),
            parts.mlp(block.ff), *eps, norm="rms", attention_norm=block.norm2, mlp_norm=block.norm4,
        )  # fmt: skip
        text = Stream(
            encoder_hidden_states, of_text, parts.attention(attn, names=ADDED, fused=True),
            parts.mlp(block.ff_context), *eps, norm="rms", attention_norm=block.norm2_context,
            mlp_norm=block.norm4_context, valid=counting(block, encoder_attention_mask),
        )  # fmt: skip
        return Call(image, text=text, output=image_and_text)


def _modulation(norm, temb):
    return scales_and_gates(norm.linear(norm.silu(temb)))


def _last_modulation(norm, temb):
    scale = norm.linear_1(norm.silu(temb))
    none = torch.zeros_like(scale)
    return torch.stack([none, scale, none, none, none, none], dim=1)


register_block_spec(MochiTransformerBlock, MochiSpec())
