"""Helios: Wan's blocks behind a history of earlier frames, whose tokens are kept always and may not see the
text."""

import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_helios import (
    HeliosAttention,
    HeliosAttnProcessor,
    HeliosTransformerBlock,
)
from torch import Tensor

from diffratio_kernels.blocks.stream import Call, Rope, Stream
from diffratio_kernels.types import PackedRows

from .attention_modules import by_count
from .modules import ModuleSpec, per_token, span
from .registry import register_block_spec


class HeliosSpec(ModuleSpec):
    plain = {"norm1": FP32LayerNorm, "norm3": FP32LayerNorm, "attn1": HeliosAttention}
    processors = (HeliosAttnProcessor,)

    def width(self, block):
        return block.scale_shift_table.shape[-1]

    def bind(
        self, block, hidden_states, encoder_hidden_states, temb, rotary_emb, original_context_length=None
    ):
        parts, tokens = self.refuse(block), hidden_states.shape[1]
        history = 0 if original_context_length is None else tokens - original_context_length
        modulation, groups = per_token(block.scale_shift_table + temb.float())
        rope = None
        if rotary_emb is not None:  # [B, N, 2 d]: every cosine twice, then every sine
            cos, sin = (table[:, :, None, ::2] for table in rotary_emb.chunk(2, dim=-1))
            rope = Rope(cos, sin)

        def cross(hidden: Tensor, rows: PackedRows) -> Tensor:
            normed = block.norm2(hidden.float()).type_as(hidden)
            added = by_count(block.attn2, normed, rows, encoder_hidden_states)
            if not block.guidance_cross_attn or history == 0:
                return added
            return added.masked_fill((rows.index % rows.tokens < history)[:, None], 0)

        def output(image, _):
            return image.type_as(hidden_states)

        scale = _key_scale(block.attn1, history, tokens)
        own = parts.attention(block.attn1, rope, fused=True, across_heads=True, key_scale=scale)
        eps = block.norm1.eps, block.norm3.eps
        image = Stream(hidden_states, modulation, own, parts.mlp(block.ffn), *eps, groups=groups)
        return Call(image, cross, layout=span(block, hidden_states, history, tokens), output=output)


def _key_scale(attn: HeliosAttention, history: int, tokens: int) -> Tensor | None:
    """[1, N, 1 or H]: keys of the history are made larger."""
    if history == 0 or not attn.is_amplify_history:
        return None
    larger = 1 + attn.history_key_scale.sigmoid() * (attn.max_scale - 1)
    return torch.cat([larger.expand(history, -1), torch.ones_like(larger).expand(tokens - history, -1)])[None]


register_block_spec(HeliosTransformerBlock, HeliosSpec())
