"""LTX-Video: RMS norms, positions across heads, then attention to the text; frames that are given have a
timestep of their own."""

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ltx import (
    LTXAttention,
    LTXVideoAttnProcessor,
    LTXVideoTransformerBlock,
)

from diffratio_kernels.blocks.stream import Call, CrossAttention, Rope, Stream, fold

from .modules import ModuleSpec, keys_values, per_token, told
from .registry import register_block_spec
from .text_mask import text_lengths


class LTXSpec(ModuleSpec):
    processors = (LTXVideoAttnProcessor,)
    plain = {"norm1": RMSNorm, "attn1": LTXAttention, "norm2": RMSNorm, "attn2": LTXAttention}

    def width(self, block):
        return block.scale_shift_table.shape[1]

    def layout(self, model, given):
        """The text's mask [B, 1, M] as the model is given it: blocks are given numbers to add."""
        mask = given.get("encoder_attention_mask")
        known = mask is not None and mask.dim() == 2 and not mask.is_floating_point()
        return mask[:, None].bool() if known else None

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             encoder_attention_mask=None):  # fmt: skip
        parts, attn, cross = self.refuse(block), block.attn1, block.attn2
        order, lengths = self._mask(block, encoder_attention_mask)
        modulation = block.scale_shift_table + temb.unflatten(-1, (6, -1))
        modulation, groups = per_token(modulation[:, 0] if temb.shape[1] == 1 else modulation)
        modulation = _folded(modulation, block.norm1.weight, block.norm2.weight)
        rope = None
        if image_rotary_emb is not None:
            rope = Rope(*(table[..., 0::2].unflatten(-1, (attn.heads, -1)) for table in image_rotary_emb))

        def query(hidden):
            return cross.norm_q(cross.to_q(hidden))

        text = keys_values(block, cross, encoder_hidden_states, cross.norm_k, "to_k", "to_v", order=order)
        return Call(
            Stream(hidden_states, modulation, parts.attention(attn, rope, fused=False, across_heads=True),
                   parts.mlp(block.ff), block.norm1.eps, block.norm2.eps, norm="rms", groups=groups),
            CrossAttention(query, parts.out(cross), cross.heads, text, lengths),
        )  # fmt: skip

    def _mask(self, block, mask):
        """Order and lengths of the text."""
        if mask is None:
            return None, None
        model, of_tokens = vars(block)["_diffratio"].model, told(block, self)
        found = text_lengths(mask if of_tokens is None else of_tokens, model)
        if found is None:
            raise ValueError(
                "encoder_attention_mask: a routed block takes masks that leave tokens out; give the model "
                "one of bool [B, M]"
            )
        return found


def _folded(modulation: torch.Tensor, *weights: torch.Tensor | None) -> torch.Tensor:
    if weights == (None, None):
        return modulation
    parts = list(modulation.unbind(-2))
    for scale, weight in zip((1, 4), weights, strict=True):
        _, parts[scale] = fold(parts[scale], weight)
    return torch.stack(parts, dim=-2)


register_block_spec(LTXVideoTransformerBlock, LTXSpec())
