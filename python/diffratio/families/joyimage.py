"""JoyImage-Edit: joint blocks of two streams with joined projections; reference images stand behind the image
that is made."""

from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_joyimage import (
    JoyImageAttention,
    JoyImageAttnProcessor,
    JoyImageModulate,
    JoyImageTransformerBlock,
)

from diffratio_kernels.blocks.stream import Call, SelfAttention, Stream

from .modules import ModuleSpec, image_and_text, pairs, span, told
from .registry import register_block_spec


class JointSpec(ModuleSpec):
    """What the block and its copy have in common."""

    def __init__(self, modulate: type, attention: type, processor: type):
        norms = dict.fromkeys(("img_norm1", "img_norm2", "txt_norm1", "txt_norm2"), FP32LayerNorm)
        self.plain = norms | {"img_mod": modulate, "txt_mod": modulate, "attn": attention}
        self.processors = (processor,)
        super().__init__()

    def width(self, block):
        return block.dim

    def stream(self, block, name: str, tokens, temb, rope) -> Stream:
        """`name`: "img" or "txt"."""
        parts, attn = self.refuse(block), block.attn
        layers = (getattr(attn, f"{name}_attn_{layer}") for layer in ("qkv", "proj", "q_norm", "k_norm"))
        qkv, out, *norms = layers
        own = SelfAttention(parts.product(qkv), parts.product(out), attn.heads, norms=tuple(norms), rope=rope)
        given = temb if temb.dim() == 3 else temb[:, None]
        modulation = getattr(block, f"{name}_mod").modulate_table + given
        eps = block.img_norm1.eps, block.img_norm2.eps
        return Stream(tokens, modulation, own, parts.mlp(getattr(block, f"{name}_mlp")), *eps)


class JoyImageSpec(JointSpec):
    def layout(self, model, given):
        """How many images the tokens are of, equal in size: the one that is made comes first."""
        x = given["hidden_states"]
        return x.shape[1] if x.dim() == 6 else 1

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None):
        of_image, of_text = (None, None) if image_rotary_emb is None else image_rotary_emb
        image = self.stream(block, "img", hidden_states, temb, pairs(of_image))
        text = self.stream(block, "txt", encoder_hidden_states, temb, pairs(of_text))
        layout = span(block, hidden_states, 0, hidden_states.shape[1] // told(block, self))
        return Call(image, text=text, layout=layout, output=image_and_text)


register_block_spec(
    JoyImageTransformerBlock, JoyImageSpec(JoyImageModulate, JoyImageAttention, JoyImageAttnProcessor)
)
