"""LTX-Video: RMS norms, positions across heads, then attention to the text; frames that are given have a
timestep of their own."""

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ltx import (
    LTXAttention,
    LTXVideoAttnProcessor,
    LTXVideoTransformerBlock,
)
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Call, Rope, Stream, fold

from .modules import ModuleSpec, per_token, text_attention, told
from .registry import register_block_spec


class LTXSpec(ModuleSpec):
    processors = (LTXVideoAttnProcessor,)
    plain = {"norm1": RMSNorm, "attn1": LTXAttention, "norm2": RMSNorm, "attn2": LTXAttention}

    def layout(self, model, given):
        """The text's mask [B, 1, M] as the model is given it: blocks are given numbers to add."""
        mask = given.get("encoder_attention_mask")
        known = mask is not None and mask.dim() == 2 and not mask.is_floating_point()
        return mask[:, None].bool() if known else None

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             encoder_attention_mask=None):  # fmt: skip
        parts, attn, eps = self.refuse(block), block.attn1, (block.norm1.eps, block.norm2.eps)
        modulation, groups = modulation_of(block.scale_shift_table, temb, block.norm1, block.norm2)
        rope = None if image_rotary_emb is None else across_heads(image_rotary_emb, attn.heads)
        own, mask = parts.attention(attn, rope, across_heads=True), encoder_attention_mask
        if mask is not None and (of_tokens := told(block, self)) is not None:
            mask = of_tokens
        return Call(
            Stream(hidden_states, modulation, own, parts.mlp(block.ff), *eps, norm="rms", groups=groups),
            text_attention(block, parts, block.attn2, encoder_hidden_states, mask),
        )


def modulation_of(table: Tensor, temb: Tensor, norm1: nn.Module, norm2: nn.Module):
    """Modulation and groups of a `Stream` from [6, D] and [B, 1 or N, 6 D], with the weights of its norms."""
    modulation = table + temb.unflatten(-1, (6, -1))
    if norm1.weight is not None or norm2.weight is not None:
        parts = list(modulation.unbind(2))
        for scale, norm in ((1, norm1), (4, norm2)):
            _, parts[scale] = fold(parts[scale], norm.weight)
        modulation = torch.stack(parts, dim=2)
    return per_token(modulation)


def across_heads(tables: tuple[Tensor, Tensor], heads: int) -> Rope:
    """Of cos and sin [B, N, D] in which every angle stands twice, side by side."""
    return Rope(*(table[..., 0::2].unflatten(-1, (heads, -1)) for table in tables))


register_block_spec(LTXVideoTransformerBlock, LTXSpec())
