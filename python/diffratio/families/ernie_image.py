"""ERNIE-Image: one sequence [image, text], rows before samples, RMS norms, modulation shared by all blocks,
rope whose two channels of a pair turn by angles of their own."""

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ernie_image import (
    ErnieImageAttention,
    ErnieImageFeedForward,
    ErnieImageSharedAdaLNBlock,
    ErnieImageSingleStreamAttnProcessor,
)
from torch import Tensor

from diffratio_kernels.blocks.stream import Call, Rope, Stream, fold
from diffratio_kernels.types import Activation

from .mlp_modules import Layers
from .modules import ModuleSpec, key_mask, span, told
from .registry import register_block_spec


class ErnieImageSpec(ModuleSpec):
    plain = {"adaLN_sa_ln": RMSNorm, "adaLN_mlp_ln": RMSNorm, "self_attention": ErnieImageAttention}
    processors = (ErnieImageSingleStreamAttnProcessor,)
    mlps = {
        ErnieImageFeedForward: Layers(("gate_proj", "up_proj"), "linear_fc2", Activation("gelu", "first")),
    }

    def layout(self, model, given):
        """How many tokens of text stand behind the image."""
        return given["text_bth"].shape[1]

    def bind(self, block, x, rotary_pos_emb, temb, attention_mask=None):
        parts, x = self.refuse(block), x.transpose(0, 1)
        norm1, norm2 = block.adaLN_sa_ln, block.adaLN_mlp_ln
        # [S, B, D] each, alike for all tokens
        shift1, scale1, gate1, shift2, scale2, gate2 = (vector[0] for vector in temb)
        shift1, scale1 = fold(scale1, norm1.weight, shift1)
        shift2, scale2 = fold(scale2, norm2.weight, shift2)
        first, second = ((part.cos(), part.sin()) for part in rotary_pos_emb.chunk(2, dim=-1))
        valid = key_mask("attention_mask", attention_mask)
        rope = Rope(*first, halves=True, second=second)
        return Call(
            Stream(x, torch.stack([shift1, scale1, gate1, shift2, scale2, gate2], dim=1),
                   parts.attention(block.self_attention, rope),
                   parts.mlp(block.mlp), norm1.eps, norm2.eps, "rms"),
            layout=span(block, x, 0, x.shape[1] - told(block, self), valid),
            output=_in_front,
        )  # fmt: skip


def _in_front(x: Tensor, _) -> Tensor:
    return x.transpose(0, 1)


register_block_spec(ErnieImageSharedAdaLNBlock, ErnieImageSpec())
