"""Bria FIBO 2: one sequence of gist tokens, image and context images, all but the image at timestep 0; norms
around the branches; in some blocks attention to the text."""

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_bria_fibo2 import (
    BriaFibo2Attention,
    BriaFibo2AttnProcessor,
    BriaFibo2TransformerBlock,
    FeedForward,
)
from torch import Tensor

from diffratio_kernels.blocks.stream import Call, Stream
from diffratio_kernels.types import PackedRows

from .attention_modules import by_count
from .mlp_modules import Layers
from .modules import ModuleSpec, complex_rope, key_mask, scales_and_gates, span, told
from .registry import register_block_spec


class BriaFibo2Spec(ModuleSpec):
    timestep_units = "noise"
    plain = {"attention": BriaFibo2Attention, "attention_norm1": RMSNorm, "ffn_norm1": RMSNorm}
    processors = (BriaFibo2AttnProcessor,)
    mlps = {FeedForward: Layers(("w1", "w3"), "w2")}
    dense = {"noise_refiner": "it sees no text"}

    def width(self, block):
        return block.attention.to_q.in_features

    def layout(self, model, given):
        """How many tokens the image has, and all context images."""
        images = [given["hidden_states"], *(given.get("context_latents") or [])]
        patch = model.config.patch_size
        made, *context = ((x.shape[2] // patch) * (x.shape[3] // patch) for x in images)
        return made, sum(context)

    def bind(self, block, x, attn_mask, freqs_cis, adaln_input=None, noise_mask=None, adaln_noisy=None,
             adaln_clean=None, encoder_hidden_states=None, encoder_attention_mask=None):  # fmt: skip
        parts, mask, groups = self.refuse(block), key_mask("attn_mask", attn_mask), None
        norm1, norm2, embedded = block.attention_norm1, block.ffn_norm1, adaln_input
        if noise_mask is not None:  # of the clean tokens and of the noisy ones of each sample
            embedded = torch.stack([adaln_clean, adaln_noisy], dim=1).flatten(0, 1)
            groups = 2 * torch.arange(x.shape[0], device=x.device)[:, None] + (noise_mask == 1)
        modulation = scales_and_gates(block.adaLN_modulation(embedded), norm1.weight, norm2.weight)
        made, context = told(block, self)
        start = 0 if mask is not None else x.shape[1] - made - context  # padded gist stands behind the image

        def cross(hidden: Tensor, rows: PackedRows) -> Tensor:
            normed = block.cross_attn_norm1(hidden)
            text = encoder_hidden_states, encoder_attention_mask
            added = by_count(block.cross_attention, normed, rows, *text)
            return block.cross_attn_gate.tanh() * block.cross_attn_norm2(added)

        own = parts.attention(block.attention, complex_rope(freqs_cis))
        image = Stream(
            x, modulation, own, parts.mlp(block.feed_forward), norm1.eps, norm2.eps, "rms", groups,
            parts.row_norm(block.attention_norm2), parts.row_norm(block.ffn_norm2),
        )  # fmt: skip
        between = None if block.cross_attention is None else cross
        return Call(image, between, layout=span(block, x, start, start + made, mask))


register_block_spec(BriaFibo2TransformerBlock, BriaFibo2Spec())
