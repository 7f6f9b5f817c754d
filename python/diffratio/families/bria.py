"""Bria 3.2: FLUX.1's blocks under other names."""

from diffusers.models.transformers.transformer_bria import (
    BriaAttention,
    BriaAttnProcessor,
    BriaSingleTransformerBlock,
    BriaTransformerBlock,
)

from .flux import FluxSingleSpec, FluxSpec
from .registry import register_block_spec


class _Bria:
    processors = (BriaAttnProcessor,)
    timestep_units = "training"

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             attention_kwargs=None):  # fmt: skip
        self.taken(block, attention_kwargs=attention_kwargs)  # which FLUX.1 has another name for
        return super().bind(
            block, hidden_states, encoder_hidden_states, temb, image_rotary_emb, attention_kwargs
        )


class BriaSpec(_Bria, FluxSpec):
    plain = FluxSpec.plain | {"attn": BriaAttention}


class BriaSingleSpec(_Bria, FluxSingleSpec):
    plain = FluxSingleSpec.plain | {"attn": BriaAttention}


register_block_spec(BriaTransformerBlock, BriaSpec())
register_block_spec(BriaSingleTransformerBlock, BriaSingleSpec())
