"""AuraFlow: joint blocks of two streams, then single blocks of one sequence [text, image]; what attention
gives is read by the MLP and not added to the tokens."""

from diffusers.models.attention_processor import Attention, AuraFlowAttnProcessor2_0
from diffusers.models.normalization import AdaLayerNormZero, FP32LayerNorm
from diffusers.models.transformers.auraflow_transformer_2d import (
    AuraFlowFeedForward,
    AuraFlowJointTransformerBlock,
    AuraFlowSingleTransformerBlock,
)

from diffratio_kernels.blocks.stream import Call, Stream

from .mlp_modules import Layers
from .modules import ModuleSpec, span, text_first, told, zero_modulation
from .parts import ADDED, Names, Parts
from .registry import register_block_spec


class _AuraFlow(ModuleSpec):
    timestep_units = "noise"
    processors = (AuraFlowAttnProcessor2_0,)
    mlps = {AuraFlowFeedForward: Layers(("linear_1", "linear_2"), "out_projection")}

    def stream(self, block, parts: Parts, x, temb, names: Names | None = None) -> Stream:
        kind = "" if names is None else "_context"
        norm1, norm2, mlp = (getattr(block, layer + kind) for layer in ("norm1", "norm2", "ff"))
        attention, eps = parts.attention(block.attn, names=names), (norm1.norm.eps, norm2.eps)
        modulation = zero_modulation(norm1, temb)
        return Stream(x, modulation, attention, parts.mlp(mlp), *eps, adds_attention=False)


class AuraFlowJointSpec(_AuraFlow):
    plain = {
        "norm1": AdaLayerNormZero, "norm1.norm": FP32LayerNorm, "norm1_context": AdaLayerNormZero,
        "norm1_context.norm": FP32LayerNorm, "attn": Attention, "norm2": FP32LayerNorm,
        "norm2_context": FP32LayerNorm,
    }  # fmt: skip

    def bind(self, block, hidden_states, encoder_hidden_states, temb, attention_kwargs=None):
        parts = self.refuse(block, attention_kwargs=attention_kwargs)
        image = self.stream(block, parts, hidden_states, temb)
        text = self.stream(block, parts, encoder_hidden_states, temb, ADDED)
        return Call(image, text=text, output=text_first)


class AuraFlowSingleSpec(_AuraFlow):
    plain = {
        "norm1": AdaLayerNormZero, "norm1.norm": FP32LayerNorm, "attn": Attention, "norm2": FP32LayerNorm,
    }  # fmt: skip

    def layout(self, model, given):
        """How many tokens stand in front of the image: registers and text."""
        return model.register_tokens.shape[1] + given["encoder_hidden_states"].shape[1]

    def bind(self, block, hidden_states, temb, attention_kwargs=None):
        parts, x = self.refuse(block, attention_kwargs=attention_kwargs), hidden_states
        return Call(self.stream(block, parts, x, temb), layout=span(block, x, told(block, self), None))


register_block_spec(AuraFlowJointTransformerBlock, AuraFlowJointSpec())
register_block_spec(AuraFlowSingleTransformerBlock, AuraFlowSingleSpec())
