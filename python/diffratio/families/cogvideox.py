"""CogVideoX: two streams through the same layers, with affine norms; positions are the video's alone."""

import torch
from diffusers.models.attention_processor import (
    Attention,
    CogVideoXAttnProcessor2_0,
    FusedCogVideoXAttnProcessor2_0,
)
from diffusers.models.normalization import CogVideoXLayerNormZero
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Call, Stream, fold

from .modules import ModuleSpec, image_and_text, pairs
from .registry import register_block_spec


class CogVideoXSpec(ModuleSpec):
    processors = (CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0)
    plain = {
        "norm1": CogVideoXLayerNormZero, "norm1.norm": nn.LayerNorm, "attn1": Attention,
        "norm2": CogVideoXLayerNormZero, "norm2.norm": nn.LayerNorm,
    }  # fmt: skip

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             attention_kwargs=None):  # fmt: skip
        parts, attn = self.refuse(block, attention_kwargs=attention_kwargs), block.attn1
        fused, mlp = isinstance(attn.processor, FusedCogVideoXAttnProcessor2_0), parts.mlp(block.ff)
        (image1, text1), (image2, text2) = (_modulation(norm, temb) for norm in (block.norm1, block.norm2))
        eps = block.norm1.norm.eps, block.norm2.norm.eps
        return Call(
            Stream(hidden_states, torch.cat([image1, image2], dim=1),
                   parts.attention(attn, pairs(image_rotary_emb), fused=fused), mlp, *eps),
            text=Stream(encoder_hidden_states, torch.cat([text1, text2], dim=1),
                        parts.attention(attn, fused=fused), mlp, *eps),
            output=image_and_text,
        )  # fmt: skip


def _modulation(norm: nn.Module, temb: Tensor) -> list[Tensor]:
    """[B, 3, D] of the image and of the text, as they are for a norm without an affine part."""
    both = norm.linear(norm.silu(temb)).unflatten(-1, (2, 3, -1))
    shift, scale, gate = both.unbind(2)
    shift, scale = fold(scale, norm.norm.weight, shift, norm.norm.bias)
    return torch.stack([shift, scale, gate], dim=2).unbind(1)


register_block_spec(CogVideoXBlock, CogVideoXSpec())
