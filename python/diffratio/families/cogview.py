"""CogView3-Plus, CogView4 and GLM-Image: joint blocks of text and image that share all layers but the one
that modulates."""

from diffusers.models.attention_processor import Attention
from torch import nn

from diffratio_kernels.blocks.stream import Call, Stream

from .modules import ModuleSpec, halves, image_and_text


class JointSpec(ModuleSpec):
    """What the three have in common; `norm1` and `processors` are their own."""

    eps = 1e-5

    def __init__(self, norm1: type, processor: type):
        self.plain = {
            "norm1": norm1,
            "norm2": nn.LayerNorm,
            "norm2_context": nn.LayerNorm,
            "attn1": Attention,
        }
        self.processors = (processor,)
        super().__init__()

    def call(self, block, image, text, modulations, rope=None, more=None, output=None):
        """`modulations` [B, 6, D]: of the image and of the text; `rope` cos and sin [N, d]."""
        parts, eps = self.refuse(block), self.eps
        of_image, of_text = modulations
        attention = parts.attention(block.attn1, halves(rope), more=more)
        mlp = parts.mlp(block.ff)
        return Call(
            Stream(image, of_image, attention, mlp, eps, eps),
            text=Stream(text, of_text, parts.attention(block.attn1), mlp, eps, eps),
            output=output or image_and_text,
        )


def by_turns(norm1: nn.Module, temb):
    """[B, 6, D] of the image and of the text, whose six parts come one by one."""
    return norm1.linear(temb).unflatten(-1, (6, 2, -1)).unbind(2)
