"""Ideogram 4: one sequence [padding, text, image], RMS norms before and after the branches, gates by tanh."""

from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ideogram4 import (
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
    Ideogram4Attention,
    Ideogram4AttnProcessor,
    Ideogram4MLP,
    Ideogram4TransformerBlock,
)
from torch import Tensor

from diffratio_kernels.blocks.stream import Call, Rope, Stream

from .mlp_modules import Layers
from .modules import ModuleSpec, per_token, scales_and_gates, span, told
from .references import read_once
from .registry import register_block_spec


class Ideogram4Spec(ModuleSpec):
    timestep_units = "clean"
    plain = {"attention": Ideogram4Attention, "attention_norm1": RMSNorm, "ffn_norm1": RMSNorm}
    processors = (Ideogram4AttnProcessor,)
    mlps = {Ideogram4MLP: Layers(("w1", "w3"), "w2")}

    def width(self, block):
        return block.attention.hidden_size

    def layout(self, model, given):
        """Where the image starts, and which tokens count."""
        start = read_once("ideogram4", _image_start, given["indicator"])
        segments = given["segment_ids"]
        padded = read_once("ideogram4", _is_padded, segments)
        return start, segments == segments[:, -1:] if padded else None

    def bind(self, block, hidden_states, attention_mask, image_rotary_emb, adaln_input):
        parts, x = self.refuse(block), hidden_states
        (start, valid), attn = told(block, self), block.attention
        norm1, norm2 = block.attention_norm1, block.ffn_norm1
        modulation = scales_and_gates(block.adaln_modulation(adaln_input), norm1.weight, norm2.weight)
        modulation, groups = per_token(modulation)
        cos, sin = (table[:, :, None, : table.shape[2] // 2] for table in image_rotary_emb)
        rope = Rope(cos, sin, halves=True)
        return Call(
            Stream(x, modulation, parts.attention(attn, rope, heads=attn.num_heads),
                   parts.mlp(block.feed_forward), norm1.eps, norm2.eps, "rms", groups,
                   attention_norm=parts.row_norm(block.attention_norm2),
                   mlp_norm=parts.row_norm(block.ffn_norm2)),
            layout=span(block, x, start, None, valid),
        )  # fmt: skip


def _image_start(indicator: Tensor) -> int:
    image = indicator == OUTPUT_IMAGE_INDICATOR
    start = image.shape[1] - int(image[0].sum())
    if not bool(image[:, start:].all()) or bool(image[:, :start].any()):
        raise ValueError("indicator: the image must come last, as many tokens in each sample")
    return start


def _is_padded(segments: Tensor) -> bool:
    last = segments[:, -1:]
    if not bool(((segments == last) | (segments == SEQUENCE_PADDING_INDICATOR)).all()):
        raise ValueError("segment_ids: several samples packed into one are not supported by a routed block")
    return bool((segments != last).any())


register_block_spec(Ideogram4TransformerBlock, Ideogram4Spec())
