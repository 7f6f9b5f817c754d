"""Bria FIBO: FLUX.1's blocks; single blocks are given one sequence [text, image]. The pipeline gives the mask
of the text's tokens among the arguments of attention."""

from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_bria import BriaAttnProcessor
from diffusers.models.transformers.transformer_bria_fibo import (
    BriaFiboAttention,
    BriaFiboAttnProcessor,
    BriaFiboSingleTransformerBlock,
    BriaFiboTransformerBlock,
)

from .flux import FluxSingleSpec, FluxSpec
from .modules import told, zero_modulation
from .registry import register_block_spec


class BriaFiboSpec(FluxSpec):
    plain = FluxSpec.plain | {"attn": BriaFiboAttention}
    processors = (BriaFiboAttnProcessor,)
    timestep_units = "training"


class BriaFiboSingleSpec(FluxSingleSpec):
    plain = FluxSingleSpec.plain | {"attn": Attention}
    processors = (BriaAttnProcessor,)
    timestep_units = "training"

    def bind(self, block, hidden_states, temb, image_rotary_emb=None, joint_attention_kwargs=None):
        parts, valid = self.taken(block, joint_attention_kwargs=joint_attention_kwargs)
        layout = self.whole(block, hidden_states, told(block, self)[0], valid)
        modulation = zero_modulation(block.norm, temb, 3)
        return self.single(block, parts, hidden_states, modulation, image_rotary_emb, layout)


register_block_spec(BriaFiboTransformerBlock, BriaFiboSpec())
register_block_spec(BriaFiboSingleTransformerBlock, BriaFiboSingleSpec())
