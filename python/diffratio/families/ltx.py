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
        of_tokens = None if encoder_attention_mask is None else told(block, self)
        order, lengths = text_order(block, encoder_attention_mask, of_tokens)
        modulation, groups = modulation_of(block.scale_shift_table, temb, block.norm1, block.norm2)
        rope = None if image_rotary_emb is None else across_heads(image_rotary_emb, attn.heads)

        text = keys_values(block, cross, encoder_hidden_states, cross.norm_k, "to_k", "to_v", order=order)
        return Call(
            Stream(hidden_states, modulation, parts.attention(attn, rope, fused=False, across_heads=True),
                   parts.mlp(block.ff), block.norm1.eps, block.norm2.eps, norm="rms", groups=groups),
            CrossAttention(parts.product(cross.to_q), parts.out(cross), cross.heads, text, lengths,
                           query_norm=parts.row_norm(cross.norm_q)),
        )  # fmt: skip


def text_order(block: nn.Module, mask: Tensor | None, of_tokens: Tensor | None):
    """Order and lengths of a text by the mask [B, 1, M] that is added, or by that of tokens where there is
    one."""
    if mask is None:
        return None, None
    found = text_lengths(mask if of_tokens is None else of_tokens, vars(block)["_diffratio"].model)
    if found is None:
        raise ValueError(
            "encoder_attention_mask: a routed block takes masks that leave tokens out; give the model one of "
            "bool [B, M]"
        )
    return found


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
