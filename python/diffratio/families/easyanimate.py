"""EasyAnimate: joint blocks whose streams share the norms, and in the later blocks all layers."""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_easyanimate import (
    EasyAnimateAttnProcessor2_0,
    EasyAnimateLayerNormZero,
    EasyAnimateTransformerBlock,
)
from torch import nn

from diffratio_kernels.blocks.stream import Call, Stream, fold

from .modules import ModuleSpec, image_and_text, pairs
from .parts import ADDED
from .registry import register_block_spec


class EasyAnimateSpec(ModuleSpec):
    plain = {"norm1": EasyAnimateLayerNormZero, "norm2": EasyAnimateLayerNormZero, "attn1": Attention}
    processors = (EasyAnimateAttnProcessor2_0,)

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None):
        parts, attn, own = self.refuse(block), block.attn1, block.txt_ff is not None
        both = zip(_parts(block.norm1, temb), _parts(block.norm2, temb), strict=True)
        of_image, of_text = (torch.cat(pair, dim=1) for pair in both)
        of_texts = parts.attention(attn, names=ADDED if own else None)
        if not own:  # diffusers projects the image alone
            of_texts.out = nn.Identity()
        eps = block.norm1.norm.eps, block.norm2.norm.eps
        image = Stream(
            hidden_states, of_image, parts.attention(attn, pairs(image_rotary_emb)),
            parts.mlp(block.ff), *eps, mlp_norm=parts.row_norm(block.norm3),
        )  # fmt: skip
        text = Stream(
            encoder_hidden_states, of_text, of_texts, parts.mlp(block.txt_ff if own else block.ff), *eps,
            mlp_norm=parts.row_norm(block.norm3),
        )  # fmt: skip
        return Call(image, text=text, output=image_and_text)


def _parts(zero: nn.Module, temb):
    """shift, scale, gate [B, 3, D] of the image and of the text; the norm's affine part is in them."""
    norm = zero.norm
    for part in zero.linear(zero.silu(temb)).unflatten(-1, (2, 3, -1)).unbind(1):
        shift, scale, gate = part.unbind(1)
        yield torch.stack([*fold(scale, norm.weight, shift, norm.bias), gate], dim=1)


register_block_spec(EasyAnimateTransformerBlock, EasyAnimateSpec())
