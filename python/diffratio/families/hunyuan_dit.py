"""HunyuanDiT: one stream, affine norms whose first one is shifted, no gates, cross-attention behind a norm of
its own; in the second half of the blocks a long skip joins all tokens before they are routed."""

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, HunyuanAttnProcessor2_0
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.hunyuan_transformer_2d import AdaLayerNormShift, HunyuanDiTBlock
from torch import Tensor

from diffratio_kernels.blocks.joint import rotated
from diffratio_kernels.blocks.stream import Call, Stream, fold

from .attention_modules import by_count
from .modules import ModuleSpec, pairs
from .registry import register_block_spec


class HunyuanDiTSpec(ModuleSpec):
    plain = {
        "norm1": AdaLayerNormShift, "norm1.norm": FP32LayerNorm, "norm3": FP32LayerNorm, "attn1": Attention,
        "attn2": Attention,
    }  # fmt: skip
    processors = (HunyuanAttnProcessor2_0,)

    def width(self, block):
        return block.attn1.query_dim

    def bind(self, block, hidden_states, encoder_hidden_states=None, temb=None, image_rotary_emb=None,
             skip=None):  # fmt: skip
        parts, attn2, x = self.refuse(block), block.attn2, hidden_states
        if block.skip_linear is not None:
            x = block.skip_linear(block.skip_norm(torch.cat([x, skip], dim=-1)))
        norm1, norm3, rope = block.norm1.norm, block.norm3, pairs(image_rotary_emb)
        shift1 = block.norm1.linear(block.norm1.silu(temb.float()).to(temb.dtype))
        zeros = torch.zeros_like(shift1)
        shift1, scale1 = fold(zeros, norm1.weight, shift1, norm1.bias)
        shift2, scale2 = fold(zeros, norm3.weight, None, norm3.bias)
        gate = torch.ones_like(zeros)
        key = attn2.to_k(encoder_hidden_states).unflatten(-1, (attn2.heads, -1))
        value = attn2.to_v(encoder_hidden_states).unflatten(-1, (attn2.heads, -1))
        key = key if attn2.norm_k is None else attn2.norm_k(key)

        def cross_attention(hidden, rows):
            query = attn2.to_q(block.norm2(hidden)).unflatten(-1, (attn2.heads, -1))
            query = query if attn2.norm_q is None else attn2.norm_q(query)
            if rope is not None:
                query = rotated(rope, query, rows)
            attended = by_count(_attend, query, rows, key, value).flatten(1)
            return attn2.to_out[1](attn2.to_out[0](attended))

        modulation = torch.stack([shift1, scale1, gate, shift2, scale2, gate], dim=1)
        attention, mlp = parts.attention(block.attn1, rope, fused=False), parts.mlp(block.ff)
        return Call(Stream(x, modulation, attention, mlp, norm1.eps, norm3.eps), cross_attention)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[b, k, H, d] to [b, M, H, d]."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


register_block_spec(HunyuanDiTBlock, HunyuanDiTSpec())
