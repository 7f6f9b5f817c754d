"""What HunyuanVideo and the families after it have in common."""

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Call, Rope, Stream

from .mlp_modules import parallel
from .modules import ModuleSpec, counting, image_and_text, key_mask, pairs, span, zero_modulation
from .parts import ADDED


def _text_behind(rope: Rope, length: int) -> Rope:
    """Tokens that do not turn, behind those that do."""
    places = 0, 0, 0, 0, 0, length
    return Rope(F.pad(rope.cos, places, value=1.0), F.pad(rope.sin, places))


class _Hunyuan(ModuleSpec):
    vectors: int
    """How many the norm gives for the modulation."""

    def conditions(self, block, x: Tensor, num_tokens: int | None) -> int:
        """How many tokens of the video x [B, N, D] are conditions, which come first and are kept always."""
        return 0

    def modulated(self, norm: nn.Module, x: Tensor, temb: Tensor, replaced, num_tokens):
        """Modulation and groups of a stream x [B, N, D]."""
        return zero_modulation(norm, temb, self.vectors), None


class JointSpec(_Hunyuan):
    vectors = 6
    plain = {
        "norm1": AdaLayerNormZero, "norm1_context": AdaLayerNormZero, "attn": Attention,
        "norm2": nn.LayerNorm, "norm2_context": nn.LayerNorm,
    }  # fmt: skip

    def bind(self, block, hidden_states, encoder_hidden_states, temb, attention_mask=None, freqs_cis=None,
             token_replace_emb=None, num_tokens=None, *_):  # fmt: skip
        parts, x, length = self.refuse(block), hidden_states, encoder_hidden_states.shape[1]
        valid, first = key_mask("attention_mask", attention_mask), self.conditions(block, x, num_tokens)
        modulation, groups = self.modulated(block.norm1, x, temb, token_replace_emb, num_tokens)
        own = parts.attention(block.attn, pairs(freqs_cis))
        other = parts.attention(block.attn, names=ADDED)
        image = Stream(x, modulation, own, parts.mlp(block.ff), groups=groups)
        text = Stream(encoder_hidden_states, zero_modulation(block.norm1_context, temb), other,
                      parts.mlp(block.ff_context))  # fmt: skip
        text.valid = counting(block, valid, -length)
        return Call(image, text=text, layout=span(block, x, first, None), output=image_and_text)


class SingleSpec(_Hunyuan):
    vectors = 3
    plain = {"norm": AdaLayerNormZeroSingle, "attn": Attention}

    def bind(self, block, hidden_states, encoder_hidden_states, temb, attention_mask=None,
             image_rotary_emb=None, token_replace_emb=None, num_tokens=None, *_):  # fmt: skip
        parts, (video, length) = self.refuse(block), (hidden_states.shape[1], encoder_hidden_states.shape[1])
        valid = key_mask("attention_mask", attention_mask)
        first = self.conditions(block, hidden_states, num_tokens)
        x = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        rope = None if image_rotary_emb is None else _text_behind(pairs(image_rotary_emb), length)

        def output(x, _):
            return x[:, :video], x[:, video:]

        own = parts.attention(block.attn, rope)
        modulation, groups = self.modulated(block.norm, x, temb, token_replace_emb, num_tokens)
        image = Stream(x, modulation, own, parallel(block, parts), groups=groups)
        return Call(image, layout=span(block, x, first, video, valid), output=output)
