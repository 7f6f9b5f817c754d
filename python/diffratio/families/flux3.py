"""FLUX.3: blocks of the image alone, then joint blocks of text, image and references through the same layers;
the MLP reads what attention reads, and every token has its modulation."""

from diffusers.models.transformers.transformer_flux3 import (
    Flux3Attention,
    Flux3AttnProcessor,
    Flux3FeedForward,
    Flux3ModeTransformerBlock,
    Flux3SingleTransformerBlock,
    Flux3SwiGLU,
    Flux3Transformer2DModel,
)
from torch import nn

from diffratio_kernels.blocks.stream import Call, Stream
from diffratio_kernels.types import Activation

from .mlp_modules import Layers, know
from .modules import ModuleSpec, pairs, per_token, six, span, text_first, told, two_kinds
from .norms import in_float
from .parts import Parts
from .registry import register_block_spec

know(Flux3SwiGLU, Activation("silu", gate="first"))


class _Flux3(ModuleSpec):
    plain = {"norm": nn.LayerNorm, "attn": Flux3Attention}
    processors = (Flux3AttnProcessor,)
    mlps = {Flux3FeedForward: Layers(("linear_in",), "linear_out")}
    timestep_units = "noise"
    dense = {"txt_mode_blocks": "it sees the text alone", "image_cond": "it sees reference images alone"}

    def layout(self, model, given):
        """How many tokens the image has, behind which references stand, and of how many diffusers' model
        gives all one modulation."""
        x = given.get("hidden_states")
        image = None if x is None else x.shape[1]
        return image, image if type(model).forward is Flux3Transformer2DModel.forward else None

    def stream(self, block, parts: Parts, x, mod, alike: int | None, rope) -> Stream:
        """alike: how many tokens have the modulation of the first one, the others that of the last one; None:
        each its own."""
        tokens = x.shape[1]
        if alike is not None:
            mod = mod[:, :: tokens - 1] if alike < tokens else mod[:, :1]
        modulation, groups = per_token(six(mod.unflatten(-1, (3, -1))))
        if alike is not None and alike < tokens:
            groups = two_kinds(x, alike)
        attention, eps = parts.attention(block.attn, rope, fused=True), block.norm.eps
        if isinstance(attention.norms, tuple):  # by their weights they are computed in fp32 anyway
            attention.norms = tuple(map(in_float, attention.norms))
        mlp = parts.mlp(block.ff)
        return Stream(x, modulation, attention, mlp, eps, eps, groups=groups, mlp_reads_input=True)


class Flux3ModeSpec(_Flux3):
    def bind(self, block, hidden_states, temb_mod, image_rotary_emb):
        parts, (_, alike), rope = self.refuse(block), told(block, self), pairs(image_rotary_emb)
        return Call(self.stream(block, parts, hidden_states, temb_mod, alike, rope))


class Flux3SingleSpec(_Flux3):
    def bind(self, block, hidden_states, encoder_hidden_states, temb_mod, temb_mod_context, image_rotary_emb):
        parts, x, text = self.refuse(block), hidden_states, encoder_hidden_states
        (image, alike), length = told(block, self), text.shape[1]
        own, other = pairs(image_rotary_emb, length), pairs(image_rotary_emb, 0, length)
        of_text = None if alike is None else length
        return Call(
            self.stream(block, parts, x, temb_mod, alike, own),
            text=self.stream(block, parts, text, temb_mod_context, of_text, other),
            layout=span(block, x, 0, image),
            output=text_first,
        )


register_block_spec(Flux3ModeTransformerBlock, Flux3ModeSpec())
register_block_spec(Flux3SingleTransformerBlock, Flux3SingleSpec())
