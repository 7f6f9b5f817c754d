"""HunyuanVideo 1.5: joint blocks alone; the mask is that of the text."""

from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15AttnProcessor2_0,
    HunyuanVideo15TransformerBlock,
)

from .hunyuan_kind import JointSpec
from .registry import register_block_spec


class HunyuanVideo15Spec(JointSpec):
    processors = (HunyuanVideo15AttnProcessor2_0,)

    def bind(self, block, hidden_states, encoder_hidden_states, temb, attention_mask=None, freqs_cis=None,
             *others):  # fmt: skip
        mask = None if attention_mask is None else attention_mask.bool()
        return super().bind(block, hidden_states, encoder_hidden_states, temb, mask, freqs_cis)


register_block_spec(HunyuanVideo15TransformerBlock, HunyuanVideo15Spec())
