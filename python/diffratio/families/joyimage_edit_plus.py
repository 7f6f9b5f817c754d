"""JoyImage-Edit-Plus: the blocks of `joyimage` on images of several sizes, the one that is made first, then
references, then padding; text is padded too."""

import math

from diffusers.models.transformers.transformer_joyimage_edit_plus import (
    JoyImageEditPlusAttention,
    JoyImageEditPlusAttnProcessor,
    JoyImageEditPlusModulate,
    JoyImageEditPlusTransformerBlock,
)

from diffratio_kernels.blocks.stream import Call, Rope

from .joyimage import JointSpec
from .modules import counting, image_and_text, key_mask, ragged, told
from .registry import register_block_spec


class JoyImageEditPlusSpec(JointSpec):
    def layout(self, model, given):
        """Of each sample how many tokens the image has that is made, and all images."""
        sizes = ([math.prod(shape) for shape in shapes] for shapes in given["shape_list"])
        return [(of_images[0], sum(of_images)) for of_images in sizes]

    def bind(self, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
             attention_mask=None):  # fmt: skip
        x, rope, mask = hidden_states, None, key_mask("attention_mask", attention_mask)
        if image_rotary_emb is not None:  # [B, N, d], every angle twice
            rope = Rope(*(table[:, :, None, ::2] for table in image_rotary_emb))
        image = self.stream(block, "img", x, temb, rope)
        text = self.stream(block, "txt", encoder_hidden_states, temb, None)
        sizes = told(block, self)
        text.valid = counting(block, mask, x.shape[1])
        if mask is None:  # padding is attended to
            sizes = [(made, x.shape[1]) for made, _ in sizes]
        layout = ragged(block, x, [(0, made) for made, _ in sizes], sizes)
        return Call(image, text=text, layout=layout, output=image_and_text)


register_block_spec(
    JoyImageEditPlusTransformerBlock,
    JoyImageEditPlusSpec(JoyImageEditPlusModulate, JoyImageEditPlusAttention, JoyImageEditPlusAttnProcessor),
)
