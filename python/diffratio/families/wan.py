"""Wan 2.1, 2.2 (text, image, both to video) and what is made of them: queries and keys are normed across
heads, then attention to the text, and to an image where there is one."""

from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor, WanTransformerBlock

from diffratio_kernels.blocks.stream import Call, Rope, Stream

from .modules import ModuleSpec, keys_values, per_token
from .parts import ADDED
from .registry import register_block_spec

TEXT = 512
"""Tokens of every text; those in front of them are an image's."""


class WanSpec(ModuleSpec):
    """Of blocks whose attention is of a class with a processor."""

    def __init__(self, attention, processor):
        self.plain = {"norm1": FP32LayerNorm, "attn1": attention, "attn2": attention, "norm3": FP32LayerNorm}
        self.processors = (processor,)
        super().__init__()

    def width(self, block):
        return block.scale_shift_table.shape[-1]

    def bind(self, block, hidden_states, encoder_hidden_states, temb, rotary_emb):
        return self.call(block, hidden_states, encoder_hidden_states, temb, rotary_emb)

    def call(self, block, x, text, temb, rotary_emb) -> Call:
        """temb: [B, 6, D], or [B, N, 6, D] of every token."""
        parts, cross = self.refuse(block), block.attn2
        modulation, groups = per_token(block.scale_shift_table + temb.float())
        rope = None if rotary_emb is None else Rope(rotary_emb[0][..., 0::2], rotary_emb[1][..., 1::2])

        def output(image, _):
            return image.type_as(x)

        others = ()
        if cross.add_k_proj is not None:
            of_image, text = text[:, : text.shape[1] - TEXT], text[:, text.shape[1] - TEXT :]
            others = (keys_values(block, cross, of_image, ADDED, "to_added_kv"),)
        of_text = keys_values(block, cross, text, joined="to_kv")
        own = parts.attention(block.attn1, rope, fused=True, across_heads=True)
        eps = block.norm1.eps, block.norm3.eps
        return Call(
            Stream(x, modulation, own, parts.mlp(block.ffn), *eps, groups=groups),
            parts.cross(cross, of_text, others=others, norm=parts.row_norm(block.norm2)),
            output=output,
        )


register_block_spec(WanTransformerBlock, WanSpec(WanAttention, WanAttnProcessor))
