"""Cosmos 1, Predict2 and 2.5: one stream, cross-attention to text (and an image) with a modulation of its
own; one timestep a sample, or one a frame."""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_cosmos import (
    CosmosAdaLayerNormZero,
    CosmosAttnProcessor2_0,
    CosmosAttnProcessor2_5,
    CosmosTransformerBlock,
)

from diffratio_kernels.blocks.stream import Call, Stream

from .modules import ModuleSpec, halves, modulated_attention, per_token
from .registry import register_block_spec


class CosmosSpec(ModuleSpec):
    timestep_units = "noise"  # Cosmos 1 is given a quarter of the logarithm of it
    plain = {
        "norm1": CosmosAdaLayerNormZero, "norm2": CosmosAdaLayerNormZero, "norm3": CosmosAdaLayerNormZero,
        "attn1": Attention,
    }  # fmt: skip
    processors = (CosmosAttnProcessor2_0, CosmosAttnProcessor2_5)

    def unsupported_reason(self, block):
        if block.before_proj is not None or block.after_proj is not None:
            return "it is one of a ControlNet"
        return super().unsupported_reason(block)

    def bind(self, block, hidden_states, encoder_hidden_states, embedded_timestep, temb=None,
             image_rotary_emb=None, extra_pos_emb=None, attention_mask=None, controlnet_residual=None,
             latents=None, block_idx=None):  # fmt: skip
        parts = self.refuse(block, latents=latents)
        x = hidden_states if extra_pos_emb is None else hidden_states + extra_pos_emb
        of_attention, of_cross, of_mlp = (
            _modulation(norm, embedded_timestep, temb) for norm in (block.norm1, block.norm2, block.norm3)
        )
        modulation, groups = per_token(torch.cat([of_attention, of_mlp], dim=-2))
        text = encoder_hidden_states if isinstance(encoder_hidden_states, tuple) else (encoder_hidden_states,)

        def attend(samples, mask, *text):
            given = text if len(text) > 1 else text[0]
            return block.attn2(samples, encoder_hidden_states=given, attention_mask=mask)

        def output(x, _):
            return x if controlnet_residual is None else x + controlnet_residual

        attention = parts.attention(block.attn1, halves(image_rotary_emb))
        return Call(
            Stream(x, modulation, attention, parts.mlp(block.ff), groups=groups),
            modulated_attention(block.norm2.norm, of_cross.flatten(0, -3), attend, attention_mask, *text),
            output=output,
        )


def _modulation(norm, embedded, temb):
    """[B, 3, D], or [B, N, 3, D] where each token has a timestep."""
    both = norm.linear_2(norm.linear_1(norm.activation(embedded)))
    both = both if temb is None else both + temb
    return both.unflatten(-1, (3, -1))


register_block_spec(CosmosTransformerBlock, CosmosSpec())
