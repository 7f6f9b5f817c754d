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


class JoyImageSpec(ModuleSpec):
    plain = {
        "img_mod": JoyImageModulate, "txt_mod": JoyImageModulate, "img_norm1": FP32LayerNorm,
        "img_norm2": FP32LayerNorm, "txt_norm1": FP32LayerNorm, "txt_norm2": FP32LayerNorm,
        "attn": JoyImageAttention,
    }  # fmt: skip
    processors = (JoyImageAttnProcessor,)

    def width(self, block):
        return block.dim

    def layout(self, model, given):
        """How many images the tokens are of, equal in size: the one that is made comes first."""
        x = given["hidden_states"]
        return x.shape[1] if x.dim() == 6 else 1

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None):
        parts, attn, eps = self.refuse(block), block.attn, (block.img_norm1.eps, block.img_norm2.eps)
        streams = []
        ropes = (None, None) if image_rotary_emb is None else image_rotary_emb
        both = (("img", hidden_states, ropes[0]), ("txt", encoder_hidden_states, ropes[1]))
        for name, tokens, rope in both:
            own = SelfAttention(
                parts.product(getattr(attn, f"{name}_attn_qkv")),
                parts.product(getattr(attn, f"{name}_attn_proj")),
                attn.heads,
                norms=(getattr(attn, f"{name}_attn_q_norm"), getattr(attn, f"{name}_attn_k_norm")),
                rope=pairs(rope),
            )
            given = temb if temb.dim() == 3 else temb[:, None]
            modulation = getattr(block, f"{name}_mod").modulate_table + given
            streams.append(Stream(tokens, modulation, own, parts.mlp(getattr(block, f"{name}_mlp")), *eps))
        image, text = streams
        layout = span(block, hidden_states, 0, hidden_states.shape[1] // told(block, self))
        return Call(image, text=text, layout=layout, output=image_and_text)


register_block_spec(JoyImageTransformerBlock, JoyImageSpec())
