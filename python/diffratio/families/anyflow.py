"""AnyFlow (of any number of steps): Wan's blocks with a timestep for every token."""

from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_anyflow import (
    AnyFlowAttention,
    AnyFlowAttnProcessor,
    AnyFlowCrossAttnProcessor,
    AnyFlowTransformerBlock,
)

from diffratio_kernels.blocks.stream import Call, Rope, Stream

from .modules import ModuleSpec, keys_values, per_token
from .registry import register_block_spec


class AnyFlowSpec(ModuleSpec):
    plain = {
        "norm1": FP32LayerNorm, "norm3": FP32LayerNorm, "attn1": AnyFlowAttention, "attn2": AnyFlowAttention,
    }  # fmt: skip
    processors = (AnyFlowAttnProcessor, AnyFlowCrossAttnProcessor)

    def width(self, block):
        return block.scale_shift_table.shape[-1]

    def bind(self, block, hidden_states, encoder_hidden_states, temb, rotary_emb, attention_mask,
             kv_cache=None, kv_cache_flag=None):  # fmt: skip
        parts = self.refuse(block, attention_mask=attention_mask, kv_cache=kv_cache)
        modulation, groups = per_token(block.scale_shift_table + temb.float())
        cross, rope = block.attn2, None
        if rotary_emb is not None:  # complex [1, 1, N, d/2], the same for query and key
            turns = rotary_emb["query"].transpose(1, 2)
            rope = Rope(turns.real, turns.imag)

        def output(image, _):
            return image.type_as(hidden_states)

        own = parts.attention(block.attn1, rope, across_heads=True)
        eps = block.norm1.eps, block.norm3.eps
        text = keys_values(block, cross, encoder_hidden_states)
        return Call(
            Stream(hidden_states, modulation, own, parts.mlp(block.ffn), *eps, groups=groups),
            parts.cross(cross, text, norm=parts.row_norm(block.norm2)),
            output=output,
        )


register_block_spec(AnyFlowTransformerBlock, AnyFlowSpec())
