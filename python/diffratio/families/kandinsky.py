"""Kandinsky 5: one stream, cross-attention with a modulation of its own to a text that runs through blocks of
another class."""

import torch
from diffusers.models.transformers.transformer_kandinsky import (
    Kandinsky5Attention,
    Kandinsky5AttnProcessor,
    Kandinsky5FeedForward,
    Kandinsky5Modulation,
    Kandinsky5TransformerDecoderBlock,
)
from torch import nn

from diffratio_kernels.blocks.stream import Call, Rope, SelfAttention, Stream
from diffratio_kernels.types import Activation

from .mlp_modules import Layers
from .modules import ModuleSpec, modulated_attention
from .norms import in_float
from .registry import register_block_spec


class Kandinsky5Spec(ModuleSpec):
    plain = {
        "visual_modulation": Kandinsky5Modulation, "self_attention_norm": nn.LayerNorm,
        "feed_forward_norm": nn.LayerNorm, "self_attention": Kandinsky5Attention,
    }  # fmt: skip
    processors = (Kandinsky5AttnProcessor,)
    mlps = {Kandinsky5FeedForward: Layers(("in_layer",), "out_layer", Activation("gelu"))}

    def width(self, block):
        return block.self_attention.to_query.in_features

    def bind(self, block, visual_embed, text_embed, time_embed, rope, sparse_params):
        parts = self.refuse(block, sparse_params=sparse_params)
        attn, modulation = block.self_attention, block.visual_modulation
        modulation = modulation.out_layer(modulation.activation(time_embed)).unflatten(-1, (9, -1)).float()
        project = tuple(parts.product(layer) for layer in (attn.to_query, attn.to_key, attn.to_value))
        norms = in_float(attn.query_norm), in_float(attn.key_norm)

        def attend(samples, text):
            return block.cross_attention(samples, encoder_hidden_states=text)

        own = SelfAttention(project, parts.product(attn.out_layer), attn.num_heads, norms=norms)
        if rope is not None:  # [.., N, 1, d/2, 2, 2]; diffusers rounds what it turns to bf16 in every dtype
            rope = rope.reshape(-1, *rope.shape[-5:])
            own.rope = Rope(rope[..., 0, 0], rope[..., 1, 0], dtype=torch.bfloat16)
        image = Stream(
            visual_embed, torch.cat([modulation[:, :3], modulation[:, 6:]], dim=1), own,
            parts.mlp(block.feed_forward), block.self_attention_norm.eps, block.feed_forward_norm.eps,
        )  # fmt: skip
        norm = in_float(block.cross_attention_norm)
        return Call(image, modulated_attention(norm, modulation[:, 3:6], attend, text_embed))


register_block_spec(Kandinsky5TransformerDecoderBlock, Kandinsky5Spec())
