"""HunyuanImage: HunyuanVideo's blocks under other names."""

from diffusers.models.transformers.transformer_hunyuanimage import (
    HunyuanImageAttnProcessor,
    HunyuanImageSingleTransformerBlock,
    HunyuanImageTransformerBlock,
)

from .hunyuan_kind import JointSpec, SingleSpec
from .registry import register_block_spec


class HunyuanImageSpec(JointSpec):
    processors = (HunyuanImageAttnProcessor,)

    def bind(self, block, hidden_states, encoder_hidden_states, temb, attention_mask=None,
             image_rotary_emb=None):  # fmt: skip
        given = block, hidden_states, encoder_hidden_states, temb, attention_mask
        return super().bind(*given, image_rotary_emb)


class HunyuanImageSingleSpec(SingleSpec):
    processors = (HunyuanImageAttnProcessor,)


register_block_spec(HunyuanImageTransformerBlock, HunyuanImageSpec())
register_block_spec(HunyuanImageSingleTransformerBlock, HunyuanImageSingleSpec())
