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

from .flux_kind import SequenceSpec
from .modules import text_and_image, zero_modulation
from .registry import register_block_spec


class FluxSpec(SequenceSpec):
    plain = {
        "norm1": AdaLayerNormZero, "norm1_context": AdaLayerNormZero, "attn": FluxAttention,
        "norm2": nn.LayerNorm, "norm2_context": nn.LayerNorm,
    }  # fmt: skip
    processors = (FluxAttnProcessor,)

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             joint_attention_kwargs=None):  # fmt: skip
        parts, valid = self.taken(block, joint_attention_kwargs=joint_attention_kwargs)
        modulation = zero_modulation(block.norm1, temb), zero_modulation(block.norm1_context, temb)
        tokens = hidden_states, encoder_hidden_states
        return self.joint(block, parts, tokens, modulation, image_rotary_emb, valid)


class FluxSingleSpec(SequenceSpec):
    plain = {"norm": AdaLayerNormZeroSingle, "attn": FluxAttention}
    processors = (FluxAttnProcessor,)

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             joint_attention_kwargs=None):  # fmt: skip
        parts, valid = self.taken(block, joint_attention_kwargs=joint_attention_kwargs)
        length = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], dim=1)

        def output(x, _):
            return text_and_image(x[:, length:], x[:, :length])

        modulation, layout = zero_modulation(block.norm, temb, 3), self.whole(block, x, length, valid)
        return self.single(block, parts, x, modulation, image_rotary_emb, layout, output)


register_block_spec(FluxTransformerBlock, FluxSpec())
register_block_spec(FluxSingleTransformerBlock, FluxSingleSpec())
