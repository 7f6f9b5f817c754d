"""Chroma: FLUX.1's blocks with modulation that the model makes, and a mask of text. Its pipeline gives the
mask as numbers, which attention adds to its scores: no token is left out, and no routed block can do that."""

import torch
from diffusers.models.transformers.transformer_chroma import (
    ChromaAdaLayerNormZeroPruned,
    ChromaAdaLayerNormZeroSinglePruned,
    ChromaSingleTransformerBlock,
    ChromaTransformerBlock,
)

from .flux import FluxSingleSpec, FluxSpec
from .modules import key_mask, told
from .registry import register_block_spec


class ChromaSpec(FluxSpec):
    plain = FluxSpec.plain | dict.fromkeys(("norm1", "norm1_context"), ChromaAdaLayerNormZeroPruned)

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             attention_mask=None, joint_attention_kwargs=None):  # fmt: skip
        parts = self.refuse(block, joint_attention_kwargs=joint_attention_kwargs)
        valid, tokens = key_mask("attention_mask", attention_mask), (hidden_states, encoder_hidden_states)
        return self.joint(block, parts, tokens, temb.split(6, dim=1), image_rotary_emb, valid)


class ChromaSingleSpec(FluxSingleSpec):
    plain = FluxSingleSpec.plain | {"norm": ChromaAdaLayerNormZeroSinglePruned}

    def bind(self, block, hidden_states, temb, image_rotary_emb=None, attention_mask=None,
             joint_attention_kwargs=None):  # fmt: skip
        parts = self.refuse(block, joint_attention_kwargs=joint_attention_kwargs)
        valid, length = key_mask("attention_mask", attention_mask), told(block, self)[0]
        modulation, layout = torch.cat([temb, temb], dim=1), self.whole(block, hidden_states, length, valid)
        return self.single(block, parts, hidden_states, modulation, image_rotary_emb, layout)


register_block_spec(ChromaTransformerBlock, ChromaSpec())
register_block_spec(ChromaSingleTransformerBlock, ChromaSingleSpec())
