"""Motif-Video: joint blocks, then single blocks of one sequence [video, text]; in most, what attention gives
attends to the text once more. The last blocks have the tokens of the earlier ones for a text."""

import torch
import torch.nn.functional as F
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_motif_video import (
    MotifVideoAttention,
    MotifVideoAttnProcessor2_0,
    MotifVideoCrossAttention,
    MotifVideoCrossAttnProcessor2_0,
    MotifVideoSingleTransformerBlock,
    MotifVideoTransformerBlock,
)
from torch import Tensor, nn

from diffratio_kernels.blocks.joint import rotated
from diffratio_kernels.blocks.stream import Call, Rope, Stream
from diffratio_kernels.types import PackedRows

from .attention_modules import by_count
from .mlp_modules import parallel
from .modules import ModuleSpec, image_and_text, key_mask, pairs, span, zero_modulation
from .registry import register_block_spec


class _Motif(ModuleSpec):
    processors = (MotifVideoAttnProcessor2_0, MotifVideoCrossAttnProcessor2_0)

    def width(self, block):
        return block.attn.query_dim


class MotifSpec(_Motif):
    plain = {
        "norm1": AdaLayerNormZero, "norm1_context": AdaLayerNormZero, "attn": MotifVideoAttention,
        "cross_attn": MotifVideoCrossAttention, "norm2": nn.LayerNorm, "norm2_context": nn.LayerNorm,
    }  # fmt: skip

    def bind(self, block, hidden_states, encoder_hidden_states, temb, attention_mask=None,
             image_rotary_emb=None, image_embed_seq_len=0):  # fmt: skip
        parts, attn, text = self.refuse(block), block.attn, encoder_hidden_states
        mask, rope = key_mask("attention_mask", attention_mask), pairs(image_rotary_emb)
        again = None
        if block.cross_attn is not None:
            normed = block.norm1_context(text, emb=temb)[0]
            again = _again(block.cross_attn, normed, mask, rope, image_embed_seq_len)
        return Call(
            Stream(hidden_states, zero_modulation(block.norm1, temb),
                   parts.attention(attn, rope, fused=False), parts.mlp(block.ff)),
            beside_attention=again,
            text=Stream(text, zero_modulation(block.norm1_context, temb),
                        parts.attention(attn, text=True, fused=False), parts.mlp(block.ff_context),
                        valid=None if mask is None else mask.flatten(1)[:, -text.shape[1] :]),
            output=image_and_text,
        )  # fmt: skip


class MotifSingleSpec(_Motif):
    plain = {
        "norm": AdaLayerNormZeroSingle, "attn": MotifVideoAttention, "cross_attn": MotifVideoCrossAttention,
    }  # fmt: skip

    def bind(self, block, hidden_states, encoder_hidden_states, temb, attention_mask=None,
             image_rotary_emb=None, image_embed_seq_len=0):  # fmt: skip
        parts, (video, length) = self.refuse(block), (hidden_states.shape[1], encoder_hidden_states.shape[1])
        mask, rope = key_mask("attention_mask", attention_mask), pairs(image_rotary_emb)
        if rope is not None:  # the text does not turn
            behind = (0, 0, 0, 0, 0, length)
            rope = Rope(F.pad(rope.cos, behind, value=1.0), F.pad(rope.sin, behind))
        x, again = torch.cat([hidden_states, encoder_hidden_states], dim=1), None
        if block.cross_attn is not None:
            normed = block.norm(encoder_hidden_states, emb=temb)[0]
            again = _again(block.cross_attn, normed, mask, rope, image_embed_seq_len, video)

        def output(x, _):
            return x[:, :video], x[:, video:]

        image = Stream(x, zero_modulation(block.norm, temb, 3),
                       parts.attention(block.attn, rope, fused=False),
                       parallel(block, parts))  # fmt: skip
        return Call(image, beside_attention=again, layout=span(block, x, 0, video, mask), output=output)


def _again(cross: nn.Module, text: Tensor, mask: Tensor | None, rope: Rope | None, skipped: int,
           video: int | None = None):  # fmt: skip
    """Attention to the text behind its first `skipped` tokens; rows from place `video` on are left out."""
    text, heads = text[:, skipped:], (cross.heads, -1)
    keys, values = (layer(text).unflatten(-1, heads).transpose(1, 2) for layer in (cross.to_k, cross.to_v))
    keys = keys if cross.norm_k is None else cross.norm_k(keys)
    mask = None if mask is None else mask.flatten(1)[:, None, None, -text.shape[1] :]

    def attend(query, keys, values, mask):
        query = query.unflatten(-1, heads).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, keys.to(query.dtype), values.to(query.dtype), mask)
        return attended.transpose(1, 2).flatten(2)

    def branch(attended: Tensor, rows: PackedRows) -> Tensor:
        query = cross.to_q(attended).unflatten(-1, heads)
        query = query if cross.norm_q is None else cross.norm_q(query)
        query = query if rope is None else rotated(rope, query, rows)
        added = cross.to_out[1](cross.to_out[0](by_count(attend, query.flatten(1), rows, keys, values, mask)))
        return added if video is None else added.masked_fill((rows.index % rows.tokens >= video)[:, None], 0)

    return branch


register_block_spec(MotifVideoTransformerBlock, MotifSpec())
register_block_spec(MotifVideoSingleTransformerBlock, MotifSingleSpec())
