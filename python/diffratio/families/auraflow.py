"""AuraFlow: joint blocks of two streams, then single blocks of one sequence [text, image]; what attention
gives is read by the MLP and not added to the tokens."""

from diffusers.models.attention_processor import Attention, AuraFlowAttnProcessor2_0
from diffusers.models.normalization import AdaLayerNormZero, FP32LayerNorm
from diffusers.models.transformers.auraflow_transformer_2d import (
    AuraFlowFeedForward,
    AuraFlowJointTransformerBlock,
    AuraFlowSingleTransformerBlock,
)
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Call, Mlp, SelfAttention, Stream

from .mlp_modules import Layers
from .modules import ModuleSpec, span, told, zero_modulation
from .registry import register_block_spec


class _AuraFlow(ModuleSpec):
    timestep_units = "noise"
    processors = (AuraFlowAttnProcessor2_0,)
    mlps = {AuraFlowFeedForward: Layers(("linear_1", "linear_2"), "out_projection")}

    def width(self, block):
        return block.attn.query_dim


class AuraFlowJointSpec(_AuraFlow):
    plain = {
        "norm1": AdaLayerNormZero, "norm1.norm": FP32LayerNorm, "norm1_context": AdaLayerNormZero,
        "norm1_context.norm": FP32LayerNorm, "attn": Attention, "norm2": FP32LayerNorm,
        "norm2_context": FP32LayerNorm,
    }  # fmt: skip

    def bind(self, block, hidden_states, encoder_hidden_states, temb, attention_kwargs=None):
        parts, attn = self.refuse(block, attention_kwargs=attention_kwargs), block.attn
        image = parts.attention(attn, fused=False)
        text = parts.attention(attn, text=True, fused=False)
        return Call(
            _stream(hidden_states, temb, image, block.norm1, block.norm2, parts.mlp(block.ff)),
            text=_stream(encoder_hidden_states, temb, text, block.norm1_context, block.norm2_context,
                         parts.mlp(block.ff_context)),
            output=_text_first,
        )  # fmt: skip


class AuraFlowSingleSpec(_AuraFlow):
    plain = {
        "norm1": AdaLayerNormZero, "norm1.norm": FP32LayerNorm, "attn": Attention, "norm2": FP32LayerNorm,
    }  # fmt: skip

    def layout(self, model, given):
        """How many tokens stand in front of the image: registers and text."""
        return model.register_tokens.shape[1] + given["encoder_hidden_states"].shape[1]

    def bind(self, block, hidden_states, temb, attention_kwargs=None):
        parts, x = self.refuse(block, attention_kwargs=attention_kwargs), hidden_states
        return Call(
            _stream(
                x,
                temb,
                parts.attention(block.attn, fused=False),
                block.norm1,
                block.norm2,
                parts.mlp(block.ff),
            ),
            layout=span(block, x, told(block, self), None),
        )


def _stream(
    x: Tensor,
    temb: Tensor,
    attention: SelfAttention,
    norm1: nn.Module,
    norm2: nn.Module,
    mlp: Mlp | nn.Module,
) -> Stream:
    modulation = zero_modulation(norm1, temb)
    return Stream(x, modulation, attention, mlp, norm1.norm.eps, norm2.eps, adds_attention=False)


def _text_first(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    return text, image


register_block_spec(AuraFlowJointTransformerBlock, AuraFlowJointSpec())
register_block_spec(AuraFlowSingleTransformerBlock, AuraFlowSingleSpec())
