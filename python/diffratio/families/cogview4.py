"""CogView4: the joint blocks of `cogview` with positions on the image."""

from diffusers.models.transformers.transformer_cogview4 import (
    CogView4AdaLayerNormZero,
    CogView4AttnProcessor,
    CogView4TransformerBlock,
)

from .cogview import JointSpec, by_turns
from .registry import register_block_spec


class CogView4Spec(JointSpec):
    def bind(self, block, hidden_states, encoder_hidden_states, temb=None, image_rotary_emb=None,
             attention_mask=None, attention_kwargs=None):  # fmt: skip
        # diffusers adds a float mask of 0 and 1 to the scores, which leaves no token out
        self.refuse(block, attention_mask=attention_mask, attention_kwargs=attention_kwargs)
        modulations = by_turns(block.norm1, temb)
        return self.call(block, hidden_states, encoder_hidden_states, modulations, image_rotary_emb)


register_block_spec(CogView4TransformerBlock, CogView4Spec(CogView4AdaLayerNormZero, CogView4AttnProcessor))
