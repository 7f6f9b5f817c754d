"""Lumina-Next: one stream; attention among the tokens and to the text are added, by a factor of each head,
before their one product; norms behind every branch."""

import math

from diffusers.models.attention import LuminaFeedForward
from diffusers.models.attention_processor import Attention, LuminaAttnProcessor2_0
from diffusers.models.normalization import LuminaRMSNormZero, RMSNorm
from diffusers.models.transformers.lumina_nextdit2d import LuminaNextDiTBlock
from torch import Tensor, nn

from diffratio_kernels.blocks.joint import at_places, rotated
from diffratio_kernels.blocks.stream import Branch, Call, Rope, Stream
from diffratio_kernels.types import PackedRows

from .attention_modules import by_count, normed_by, softmax_attention
from .mlp_modules import Layers
from .modules import ModuleSpec, complex_rope, scales_and_gates
from .registry import register_block_spec


class LuminaNextSpec(ModuleSpec):
    timestep_units = "clean"
    plain = {"norm1": LuminaRMSNormZero, "ffn_norm1": RMSNorm, "attn1": Attention, "attn2": Attention}
    processors = (LuminaAttnProcessor2_0,)
    mlps = {LuminaFeedForward: Layers(("linear_1", "linear_3"), "linear_2")}

    def bind(self, block, hidden_states, attention_mask, image_rotary_emb, encoder_hidden_states,
             encoder_mask, temb, cross_attention_kwargs=None):  # fmt: skip
        given, zero, norm2 = dict(cross_attention_kwargs or {}), block.norm1, block.ffn_norm1
        base = given.pop("base_sequence_length", None)
        parts = self.refuse(block, cross_attention_kwargs=given)
        modulation = scales_and_gates(zero.linear(zero.silu(temb)), zero.norm.weight, norm2.weight)
        rope, text = complex_rope(image_rotary_emb), (encoder_hidden_states, encoder_mask.bool())
        attend, mlp = _attention(block, rope, attention_mask, text, base), parts.mlp(block.feed_forward)
        eps, mlp_norm = (zero.norm.eps, norm2.eps), parts.row_norm(block.ffn_norm2)
        return Call(Stream(hidden_states, modulation, attend, mlp, *eps, norm="rms", mlp_norm=mlp_norm))


def _attention(block, rope: Rope, mask: Tensor, text: tuple[Tensor, Tensor], base: int | None) -> Branch:
    """Among the tokens that count, mask [B, N], and to a text [B, M, .] with its mask [B, M]; attention to
    more tokens than `base` is sharpened."""
    own, cross = block.attn1, block.attn2
    of_text, text_mask = block.norm1_context(text[0]), text[1]
    text_key = _heads(block, of_text, cross.to_k, cross.norm_k)
    text_value = _heads(block, of_text, cross.to_v)

    def attend(query, query2, key, value, counts, *text):  # samples [b, k, H, d] -> [b, k, D]
        scale = own.scale if base is None else own.scale * math.sqrt(math.log(query.shape[1], base))
        mixed = softmax_attention(query, key, value, counts, scale)
        of_text = softmax_attention(query2, *text)
        return (mixed + of_text * block.gate.tanh()[:, None]).flatten(2)

    def branch(normed: Tensor, rows: PackedRows) -> Tensor:
        layers = (own.to_q, own.norm_q), (cross.to_q, cross.norm_q), (own.to_k, own.norm_k)
        turned = [rotated(rope, _heads(block, normed, *both).to(normed.dtype), rows) for both in layers]
        packed = *turned, _heads(block, normed, own.to_v), at_places(mask, rows) > 0
        return block.norm2(cross.to_out[0](by_count(attend, packed, rows, text_key, text_value, text_mask)))

    return branch


def _heads(block, x: Tensor, layer: nn.Module, norm: nn.Module | None = None) -> Tensor:
    """[.., D] -> [.., H, d]."""
    return normed_by(norm, layer(x)).unflatten(-1, (-1, block.head_dim))


register_block_spec(LuminaNextDiTBlock, LuminaNextSpec())
