"""Qwen-Image 2.1: one sequence whose last tokens are the image that is made; what comes before (text and
condition images) attends to what comes before it alone, so that it runs through the block's own forward."""

import torch
from diffusers.models.transformers.transformer_qwenimage21 import (
    QwenImage21Attention,
    QwenImage21AttnProcessor,
    QwenImage21KVLayerCache,
    QwenImage21SwiGLUFeedForward,
    QwenImage21TransformerBlock,
)
from torch import nn

from diffratio_kernels.blocks.stream import Call, KeysValues, Stream

from .mlp_modules import Layers
from .modules import ModuleSpec, clipped, complex_rope, counting, scales_and_gates
from .registry import register_block_spec


class QwenImage21Spec(ModuleSpec):
    timestep_units = "noise"
    plain = {"img_norm1": nn.LayerNorm, "img_norm2": nn.LayerNorm, "attn": QwenImage21Attention}
    processors = (QwenImage21AttnProcessor,)
    mlps = {QwenImage21SwiGLUFeedForward: Layers(("gate_layer", "proj"), "out")}

    def width(self, block):
        return block.attn.to_q.in_features

    def bind(self, block, hidden_states, modulation, rotary_emb=None, attention_mask=None,
             target_token_mask=None, layer_cache=None, kv_cache_mode=None, cache_write_slice=None,
             segments=None, key_valid=None):  # fmt: skip
        parts = self.refuse(block)
        start, before, x, mask = 0, hidden_states[:, :0], hidden_states, attention_mask
        if segments is not None:
            start, mask = segments[-1][1], key_valid
            layer_cache = QwenImage21KVLayerCache() if layer_cache is None else layer_cache
            before, x = x[:, :start], x[:, start:]
            before = vars(block)["_diffratio"].dense_forward(
                before, modulation, None if rotary_emb is None else rotary_emb[:start], None,
                None if target_token_mask is None else target_token_mask[:start], layer_cache, "extract",
                slice(0, start), segments, None if mask is None else mask[:, :start],
            )  # fmt: skip
        key, value = layer_cache.get()
        more = KeysValues.masked(key, value, counting(block, mask, 0, key.shape[1]))
        rows = modulation if target_token_mask is None else modulation[:-1]
        of_image, rope = scales_and_gates(rows), complex_rope(rotary_emb, start)

        def output(image, _):
            return clipped(torch.cat([before, image], dim=1))

        attention = parts.attention(block.attn, rope, more=more)
        eps = block.img_norm1.eps, block.img_norm2.eps
        return Call(Stream(x, of_image, attention, parts.mlp(block.img_mlp), *eps), output=output)


register_block_spec(QwenImage21TransformerBlock, QwenImage21Spec())
