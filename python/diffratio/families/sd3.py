"""SD3 and SD3.5: joint blocks of two streams without positions; some have a second attention of the image
alone, the last one gives no text."""

from diffusers.models.attention import JointTransformerBlock
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, SD35AdaLayerNormZeroX
from diffusers.models.transformers.transformer_sd3 import SD3SingleTransformerBlock
from torch import nn

from diffratio_kernels.blocks.stream import Call, SecondAttention, Stream

from .modules import ModuleSpec, zero_modulation
from .parts import ADDED
from .registry import register_block_spec


class SD3Spec(ModuleSpec):
    processors = (JointAttnProcessor2_0,)
    plain = {
        "norm1": (AdaLayerNormZero, SD35AdaLayerNormZeroX), "norm2": nn.LayerNorm, "attn": Attention,
        "norm1_context": (AdaLayerNormZero, AdaLayerNormContinuous), "norm2_context": nn.LayerNorm,
        "attn2": Attention,
    }  # fmt: skip

    def bind(self, block, hidden_states, encoder_hidden_states, temb, joint_attention_kwargs=None):
        parts, attn = self.refuse(block, joint_attention_kwargs=joint_attention_kwargs), block.attn
        dual, last = block.use_dual_attention, block.context_pre_only
        modulation = block.norm1.linear(block.norm1.silu(temb)).unflatten(-1, (9 if dual else 6, -1))
        second = SecondAttention(parts.attention(block.attn2), modulation[:, 6:]) if dual else None
        if last:  # scale before shift, and the stream ends at the attention
            norm = block.norm1_context
            text_modulation = norm.linear(norm.silu(temb)).unflatten(-1, (2, -1)).flip(1)
        else:
            text_modulation = zero_modulation(block.norm1_context, temb)

        def output(image, text):
            return None if last else text, image

        return Call(
            Stream(hidden_states, modulation[:, :6], parts.attention(attn), parts.mlp(block.ff)),
            after_attention=second,
            text=Stream(encoder_hidden_states, text_modulation, parts.attention(attn, names=ADDED),
                        None if last else parts.mlp(block.ff_context)),
            output=output,
        )  # fmt: skip


class SD3SingleSpec(ModuleSpec):
    """Of SD3.5's ControlNet."""

    processors = (JointAttnProcessor2_0,)
    plain = {"norm1": AdaLayerNormZero, "attn": Attention, "norm2": nn.LayerNorm}

    def bind(self, block, hidden_states, temb):
        parts, modulation = self.refuse(block), zero_modulation(block.norm1, temb)
        attention, mlp = parts.attention(block.attn), parts.mlp(block.ff)
        return Call(Stream(hidden_states, modulation, attention, mlp))


register_block_spec(JointTransformerBlock, SD3Spec())
register_block_spec(SD3SingleTransformerBlock, SD3SingleSpec())
