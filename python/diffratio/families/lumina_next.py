"""Lumina-Next: one stream; attention among the tokens and to the text are added, by a factor of each head,
before their one product; norms behind every branch."""

import math

import torch
import torch.nn.functional as F
from diffusers.models.attention import LuminaFeedForward
from diffusers.models.attention_processor import Attention, LuminaAttnProcessor2_0
from diffusers.models.normalization import LuminaRMSNormZero, RMSNorm
from diffusers.models.transformers.lumina_nextdit2d import LuminaNextDiTBlock
from torch import Tensor

from diffratio_kernels.blocks.joint import at_places, rotated
from diffratio_kernels.blocks.stream import Call, Rope, Stream, fold
from diffratio_kernels.types import PackedRows

from .attention_modules import by_count
from .mlp_modules import Layers
from .modules import ModuleSpec, complex_rope
from .registry import register_block_spec


class LuminaNextSpec(ModuleSpec):
    timestep_units = "clean"
    plain = {"norm1": LuminaRMSNormZero, "ffn_norm1": RMSNorm, "attn1": Attention, "attn2": Attention}
    processors = (LuminaAttnProcessor2_0,)
    mlps = {LuminaFeedForward: Layers(("linear_1", "linear_3"), "linear_2")}

    def width(self, block):
        return block.attn1.query_dim

    def bind(self, block, hidden_states, attention_mask, image_rotary_emb, encoder_hidden_states,
             encoder_mask, temb, cross_attention_kwargs=None):  # fmt: skip
        given, zero = dict(cross_attention_kwargs or {}), block.norm1
        base = given.pop("base_sequence_length", None)
        parts = self.refuse(block, cross_attention_kwargs=given)
        scale1, gate1, scale2, gate2 = zero.linear(zero.silu(temb)).chunk(4, dim=1)
        modulation = torch.stack(
            [
                *fold(scale1, zero.norm.weight),
                gate1.tanh(),
                *fold(scale2, block.ffn_norm1.weight),
                gate2.tanh(),
            ],
            dim=1,
        )
        rope, text = complex_rope(image_rotary_emb), (encoder_hidden_states, encoder_mask)
        attend = _attention(block, rope, attention_mask, text, base)
        image = Stream(
            hidden_states, modulation, attend, parts.mlp(block.feed_forward), zero.norm.eps,
            block.ffn_norm1.eps, norm="rms", mlp_norm=parts.row_norm(block.ffn_norm2),
        )  # fmt: skip
        return Call(image)


def _attention(block, rope: Rope, mask: Tensor, text: tuple[Tensor, Tensor], base: int | None):
    """The branch of attention [T, D] -> [T, D], before its gate.

    Args:
        block: a routed one.
        rope: of queries and keys, those to the text too.
        mask: [B, N], the tokens that count.
        text: [B, M, .] and its mask [B, M].
        base: attention to more tokens than these is sharpened.
    """
    own, cross, head = block.attn1, block.attn2, block.head_dim
    of_text = block.norm1_context(text[0])
    text_key, text_value = _normed(cross.norm_k, cross.to_k(of_text)), cross.to_v(of_text)
    width, few = own.to_q.out_features, own.to_k.out_features

    def softmax(query, key, value, mask, scale):  # [b, ., H d] -> [b, H, k, d]
        query, key, value = (t.unflatten(-1, (-1, head)).transpose(1, 2) for t in (query, key, value))
        key, value = (t.repeat_interleave(width // few, dim=1).to(query.dtype) for t in (key, value))
        return F.scaled_dot_product_attention(query, key, value, mask[:, None, None], scale=scale)

    def attend(packed, text_key, text_value, text_mask):  # samples [b, k, .] -> [b, k, D]
        query, query2, key, value, counts = packed.split([width, width, few, few, 1], dim=-1)
        scale = own.scale if base is None else own.scale * math.sqrt(math.log(packed.shape[1], base))
        mixed = softmax(query, key, value, counts[..., 0] > 0, scale)
        mixed = (
            mixed + softmax(query2, text_key, text_value, text_mask, None) * block.gate.tanh()[:, None, None]
        )
        return mixed.transpose(1, 2).flatten(2)

    def branch(normed: Tensor, rows: PackedRows) -> Tensor:
        turning = (
            _normed(own.norm_q, own.to_q(normed)),
            _normed(cross.norm_q, cross.to_q(normed)),
            _normed(own.norm_k, own.to_k(normed)),
        )
        turned = [rotated(rope, x.unflatten(-1, (-1, head)).to(normed.dtype), rows) for x in turning]
        counts = at_places(mask, rows)[:, None].to(normed.dtype)
        packed = torch.cat([*(x.flatten(1) for x in turned), own.to_v(normed), counts], dim=-1)
        mixed = by_count(attend, packed, rows, text_key, text_value, text[1].bool())
        return block.norm2(cross.to_out[0](mixed))

    return branch


def _normed(norm, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


register_block_spec(LuminaNextDiTBlock, LuminaNextSpec())
