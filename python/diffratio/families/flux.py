"""FLUX.1, Kontext, Krea-dev: joint blocks of two streams, then single blocks of one sequence [text, image]
with the MLP beside the attention."""

import torch
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import nn

from diffratio_kernels.blocks.stream import Call, Parallel, Stream

from .modules import ModuleSpec, pairs, span, text_and_image, told, zero_modulation
from .references import target_tokens
from .registry import register_block_spec


class _Flux(ModuleSpec):
    timestep_units = "noise"
    processors = (FluxAttnProcessor,)

    def width(self, block):
        return block.attn.query_dim

    def layout(self, model, given):
        """How many image tokens come before Kontext's reference images."""
        return target_tokens(given.get("img_ids"))


class FluxSpec(_Flux):
    plain = {
        "norm1": AdaLayerNormZero, "norm1_context": AdaLayerNormZero, "attn": FluxAttention,
        "norm2": nn.LayerNorm, "norm2_context": nn.LayerNorm,
    }  # fmt: skip

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             joint_attention_kwargs=None):  # fmt: skip
        parts, attn = self.refuse(block, joint_attention_kwargs=joint_attention_kwargs), block.attn
        length = encoder_hidden_states.shape[1]
        image, text = pairs(image_rotary_emb, length), pairs(image_rotary_emb, 0, length)
        return Call(
            Stream(hidden_states, zero_modulation(block.norm1, temb), parts.attention(attn, image),
                   parts.mlp(block.ff)),
            text=Stream(encoder_hidden_states, zero_modulation(block.norm1_context, temb),
                        parts.attention(attn, text, text=True), parts.mlp(block.ff_context)),
            layout=span(block, hidden_states, 0, told(block, self)),
            output=text_and_image,
        )  # fmt: skip


class FluxSingleSpec(_Flux):
    plain = {"norm": AdaLayerNormZeroSingle, "attn": FluxAttention}

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             joint_attention_kwargs=None):  # fmt: skip
        parts = self.refuse(block, joint_attention_kwargs=joint_attention_kwargs)
        length, target = encoder_hidden_states.shape[1], told(block, self)
        x = torch.cat([encoder_hidden_states, hidden_states], dim=1)

        def inner(normed):
            return block.act_mlp(block.proj_mlp(normed))

        def output(x, _):
            return text_and_image(x[:, length:], x[:, :length])

        return Call(
            Stream(x, zero_modulation(block.norm, temb, 3),
                   parts.attention(block.attn, pairs(image_rotary_emb)),
                   Parallel(inner, parts.product(block.proj_out))),
            layout=span(block, x, length, None if target is None else length + target),
            output=output,
        )  # fmt: skip


register_block_spec(FluxTransformerBlock, FluxSpec())
register_block_spec(FluxSingleTransformerBlock, FluxSingleSpec())
