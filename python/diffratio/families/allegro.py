"""Allegro: one stream, attention with positions along three axes, cross-attention to the text."""

import torch
from diffusers.models.attention_processor import AllegroAttnProcessor2_0, Attention
from diffusers.models.transformers.transformer_allegro import AllegroTransformerBlock
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Call, Rope, Stream

from .modules import ModuleSpec, text_attention
from .registry import register_block_spec


class AllegroSpec(ModuleSpec):
    plain = {"norm1": nn.LayerNorm, "norm2": nn.LayerNorm, "attn1": Attention, "attn2": Attention}
    processors = (AllegroAttnProcessor2_0,)

    def unsupported_reason(self, block):
        if block.norm1.elementwise_affine:
            return "its norms have an affine part"
        return super().unsupported_reason(block)

    def bind(self, block, hidden_states, encoder_hidden_states=None, temb=None, attention_mask=None,
             encoder_attention_mask=None, image_rotary_emb=None):  # fmt: skip
        parts = self.refuse(block, attention_mask=attention_mask)
        modulation = block.scale_shift_table[None] + temb.reshape(hidden_states.shape[0], 6, -1)
        attention = parts.attention(block.attn1, _rope(image_rotary_emb))
        attention.norms = None if attention.rope is None else (_halves_together, _halves_together)
        eps = block.norm1.eps, block.norm2.eps
        return Call(
            Stream(hidden_states, modulation, attention, parts.mlp(block.ff), *eps),
            text_attention(block, parts, block.attn2, encoder_hidden_states, encoder_attention_mask),
        )


def _rope(given) -> Rope | None:
    """Tables of three axes, both halves alike, and where each token is on them [3][1, N]."""
    if given is None:
        return None
    tables = []
    for kind in (0, 1):
        axes = [table[kind][place] for table, place in zip(*given, strict=True)]
        tables.append(torch.cat([axis[..., : axis.shape[-1] // 2] for axis in axes], dim=-1)[:, :, None])
    return Rope(*tables, halves=True)


def _halves_together(x: Tensor) -> Tensor:
    """[T, H, d] in another order of channels, of which products do not know: the first halves of the three
    axes, then the second halves."""
    return x.unflatten(-1, (3, 2, -1)).transpose(-3, -2).flatten(-3)


register_block_spec(AllegroTransformerBlock, AllegroSpec())
