"""CogView3-Plus: the joint blocks of `cogview` without positions in attention."""

from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from diffusers.models.normalization import CogView3PlusAdaLayerNormZeroTextImage
from diffusers.models.transformers.transformer_cogview3plus import CogView3PlusTransformerBlock

from .cogview import JointSpec
from .modules import clipped
from .registry import register_block_spec


class CogView3PlusSpec(JointSpec):
    def bind(self, block, hidden_states, encoder_hidden_states, emb):
        norm = block.norm1
        modulations = norm.linear(norm.silu(emb)).unflatten(-1, (2, 6, -1)).unbind(1)

        def output(image, text):
            return clipped(image), clipped(text)

        return self.call(block, hidden_states, encoder_hidden_states, modulations, output=output)


register_block_spec(
    CogView3PlusTransformerBlock,
    CogView3PlusSpec(CogView3PlusAdaLayerNormZeroTextImage, CogVideoXAttnProcessor2_0),
)
