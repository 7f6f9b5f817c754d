"""Motif-Video: HunyuanVideo's blocks; in most, what attention gives attends to the text once more. The last
blocks have the tokens of the earlier ones for a text."""

from diffusers.models.transformers.transformer_motif_video import (
    MotifVideoAttention,
    MotifVideoAttnProcessor2_0,
    MotifVideoCrossAttention,
    MotifVideoCrossAttnProcessor2_0,
    MotifVideoSingleTransformerBlock,
    MotifVideoTransformerBlock,
)
from torch import Tensor

from diffratio_kernels.blocks.stream import Branch, Call
from diffratio_kernels.types import PackedRows

from .attention_modules import attention_to
from .hunyuan_kind import JointSpec, SingleSpec
from .registry import register_block_spec

_ATTENTIONS = {"attn": MotifVideoAttention, "cross_attn": MotifVideoCrossAttention}


class _Motif:
    processors = (MotifVideoAttnProcessor2_0, MotifVideoCrossAttnProcessor2_0)
    norm_of_text: str

    def bind(self, block, hidden_states, encoder_hidden_states, temb, attention_mask=None,
             image_rotary_emb=None, image_embed_seq_len=0):  # fmt: skip
        tokens = hidden_states, encoder_hidden_states
        call = super().bind(block, *tokens, temb, attention_mask, image_rotary_emb)
        if block.cross_attn is not None:
            text = getattr(block, self.norm_of_text)(encoder_hidden_states, emb=temb)[0]
            call.beside_attention = self.again(block, call, text[:, image_embed_seq_len:], attention_mask)
        return call

    def again(self, block, call: Call, text: Tensor, mask: Tensor | None) -> Branch:
        """Attention to the text [B, M, D] behind the tokens of an image."""
        valid = None if mask is None else mask.flatten(1)[:, -text.shape[1] :]
        return attention_to(block.cross_attn, text, call.image.attention.rope, valid)


class MotifSpec(_Motif, JointSpec):
    plain = JointSpec.plain | _ATTENTIONS
    norm_of_text = "norm1_context"


class MotifSingleSpec(_Motif, SingleSpec):
    plain = SingleSpec.plain | _ATTENTIONS
    norm_of_text = "norm"

    def again(self, block, call, text, mask):
        """Rows of the text do not attend to it again."""
        of_all, video = super().again(block, call, text, mask), call.layout.routed[0]

        def branch(attended: Tensor, rows: PackedRows) -> Tensor:
            of_text = (rows.index % rows.tokens >= video)[:, None]
            return of_all(attended, rows).masked_fill(of_text, 0)

        return branch


register_block_spec(MotifVideoTransformerBlock, MotifSpec())
register_block_spec(MotifVideoSingleTransformerBlock, MotifSingleSpec())
