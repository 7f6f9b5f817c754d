"""FLUX.1, Kontext, Krea-dev: joint blocks of two streams, then single blocks of one sequence [text, image]
with the MLP beside the attention."""

import torch
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Call, Layout, Stream

from .mlp_modules import parallel
from .modules import (
    ModuleSpec,
    Parts,
    clipped,
    key_mask,
    pairs,
    span,
    text_and_image,
    told,
    zero_modulation,
)
from .references import target_tokens
from .registry import register_block_spec


class SequenceSpec(ModuleSpec):
    """What FLUX.1 and the families after it share."""

    timestep_units = "noise"

    def width(self, block):
        return block.attn.query_dim

    def layout(self, model, given):
        """How long the text is, and how many image tokens come before the reference images."""
        text = given.get("encoder_hidden_states")
        return None if text is None else text.shape[1], target_tokens(given.get("img_ids"))

    def taken(self, block, **given) -> tuple[Parts, Tensor | None]:
        """The block's parts and the mask of keys among the arguments of its attention; others are refused."""
        given = {name: dict(value or {}) for name, value in given.items()}
        masks = [value.pop("attention_mask", None) for value in given.values()]
        return self.refuse(block, **given), key_mask("attention_mask", masks[0])

    def whole(self, block, x, length: int, valid: Tensor | None) -> Layout | None:
        """The layout of one sequence [text, image, references] of which the image is routed."""
        target = told(block, self)[1]
        return span(block, x, length, None if target is None else length + target, valid)


def _clipped_text(image, text):
    """What joint blocks return: of both streams the text alone is clipped."""
    return clipped(text), image


def joint_call(block, parts: Parts, tokens, modulation, rope, layout, valid: Tensor | None = None) -> Call:
    """Of two streams with one rope table [text, image].

    Args:
        tokens: of image and text.
        modulation: of image and text, [B, 6, D] each.
        valid: a `key_mask` of [text, image].
    """
    (x, text), eps = tokens, block.norm2.eps
    length = text.shape[1]
    own, other = pairs(rope, length), pairs(rope, 0, length)
    text = Stream(text, modulation[1], parts.attention(block.attn, other, text=True),
                  parts.mlp(block.ff_context), eps, eps)  # fmt: skip
    text.valid = None if valid is None else valid.flatten(1)[:, :length]
    image = Stream(x, modulation[0], parts.attention(block.attn, own), parts.mlp(block.ff), eps, eps)
    return Call(image, text=text, layout=layout, output=_clipped_text)


class FluxSpec(SequenceSpec):
    plain = {
        "norm1": AdaLayerNormZero, "norm1_context": AdaLayerNormZero, "attn": FluxAttention,
        "norm2": nn.LayerNorm, "norm2_context": nn.LayerNorm,
    }  # fmt: skip
    processors = (FluxAttnProcessor,)

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             joint_attention_kwargs=None):  # fmt: skip
        parts, valid = self.taken(block, joint_attention_kwargs=joint_attention_kwargs)
        modulation = zero_modulation(block.norm1, temb), zero_modulation(block.norm1_context, temb)
        layout = span(block, hidden_states, 0, told(block, self)[1])
        tokens = hidden_states, encoder_hidden_states
        return joint_call(block, parts, tokens, modulation, image_rotary_emb, layout, valid)


class FluxSingleSpec(SequenceSpec):
    plain = {"norm": AdaLayerNormZeroSingle, "attn": FluxAttention}
    processors = (FluxAttnProcessor,)

    gate: str | None = None
    """Of the MLP's activation, as of `Activation`."""

    def single_call(self, block, parts: Parts, x, modulation, rope, layout, output=None) -> Call:
        """Of one sequence with one rope table."""

        def same(x, _):
            return clipped(x)

        mlp = parallel(block, parts, self.gate)
        stream = Stream(x, modulation, parts.attention(block.attn, pairs(rope)), mlp)
        return Call(stream, layout=layout, output=output or same)

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             joint_attention_kwargs=None):  # fmt: skip
        parts, valid = self.taken(block, joint_attention_kwargs=joint_attention_kwargs)
        length = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], dim=1)

        def output(x, _):
            return text_and_image(x[:, length:], x[:, :length])

        modulation, layout = zero_modulation(block.norm, temb, 3), self.whole(block, x, length, valid)
        return self.single_call(block, parts, x, modulation, image_rotary_emb, layout, output)


register_block_spec(FluxTransformerBlock, FluxSpec())
register_block_spec(FluxSingleTransformerBlock, FluxSingleSpec())
