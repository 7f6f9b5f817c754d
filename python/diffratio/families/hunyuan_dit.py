"""HunyuanDiT: one stream, affine norms whose first one is shifted, no gates, cross-attention behind a norm of
its own; in the second half of the blocks a long skip joins all tokens before they are routed."""

import torch
from diffusers.models.attention_processor import Attention, HunyuanAttnProcessor2_0
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.hunyuan_transformer_2d import AdaLayerNormShift, HunyuanDiTBlock

from diffratio_kernels.blocks.stream import Call, Stream, fold

from .attention_modules import attention_to
from .modules import ModuleSpec, pairs
from .registry import register_block_spec


class HunyuanDiTSpec(ModuleSpec):
    plain = {
        "norm1": AdaLayerNormShift, "norm1.norm": FP32LayerNorm, "norm3": FP32LayerNorm, "attn1": Attention,
        "attn2": Attention,
    }  # fmt: skip
    processors = (HunyuanAttnProcessor2_0,)

    def bind(self, block, hidden_states, encoder_hidden_states=None, temb=None, image_rotary_emb=None,
             skip=None):  # fmt: skip
        parts, x = self.refuse(block), hidden_states
        if block.skip_linear is not None:
            x = block.skip_linear(block.skip_norm(torch.cat([x, skip], dim=-1)))
        norm1, norm3, rope = block.norm1.norm, block.norm3, pairs(image_rotary_emb)
        shift1 = block.norm1.linear(block.norm1.silu(temb.float()).to(temb.dtype))
        zeros = torch.zeros_like(shift1)
        shift1, scale1 = fold(zeros, norm1.weight, shift1, norm1.bias)
        shift2, scale2 = fold(zeros, norm3.weight, None, norm3.bias)
        gate = torch.ones_like(zeros)
        to_text = attention_to(block.attn2, encoder_hidden_states, rope)

        def cross_attention(hidden, rows):
            return to_text(block.norm2(hidden), rows)

        modulation = torch.stack([shift1, scale1, gate, shift2, scale2, gate], dim=1)
        attention, mlp = parts.attention(block.attn1, rope), parts.mlp(block.ff)
        return Call(Stream(x, modulation, attention, mlp, norm1.eps, norm3.eps), cross_attention)


register_block_spec(HunyuanDiTBlock, HunyuanDiTSpec())
