"""GLM-Image: the joint blocks of `cogview`; reference images stand in a cache of keys and values."""

from diffusers.models.transformers.transformer_glm_image import (
    GlmImageAdaLayerNormZero,
    GlmImageAttnProcessor,
    GlmImageTransformerBlock,
)

from diffratio_kernels.blocks.stream import KeysValues

from .cogview import JointSpec, by_turns
from .registry import register_block_spec


class GlmImageSpec(JointSpec):
    def bind(self, block, hidden_states, encoder_hidden_states, temb=None, image_rotary_emb=None,
             attention_mask=None, attention_kwargs=None, kv_cache=None):  # fmt: skip
        # diffusers adds a float mask of 0 and 1 to the scores, which leaves no token out
        self.refuse(block, attention_mask=attention_mask, attention_kwargs=attention_kwargs)
        mode = None if kv_cache is None else kv_cache.mode
        if mode == "write":  # the keys of all tokens of a reference image
            return None
        more = None
        if mode == "read" and kv_cache.k_caches:
            few = hidden_states.new_empty(hidden_states.shape[0], 0, *kv_cache.k_caches[0].shape[2:])
            more = KeysValues(*kv_cache.get(few, few))
        modulations = by_turns(block.norm1, temb)
        return self.call(block, hidden_states, encoder_hidden_states, modulations, image_rotary_emb, more)


register_block_spec(GlmImageTransformerBlock, GlmImageSpec(GlmImageAdaLayerNormZero, GlmImageAttnProcessor))
