"""Qwen-Image, -Edit, -Layered, -ControlNet: joint blocks of two streams, with a mask of the text; Edit's
reference tokens may have a modulation of their own."""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_qwenimage import (
    QwenDoubleStreamAttnProcessor2_0,
    QwenEmbedLayer3DRope,
    QwenImageTransformerBlock,
)
from torch import nn

from diffratio_kernels.blocks.stream import Call, Rope, Stream

from .modules import ModuleSpec, counting, span, text_and_image, told
from .parts import ADDED
from .references import target_of_shapes
from .registry import register_block_spec


class QwenImageSpec(ModuleSpec):
    timestep_units = "noise"
    processors = (QwenDoubleStreamAttnProcessor2_0,)
    plain = {
        "img_norm1": nn.LayerNorm, "txt_norm1": nn.LayerNorm, "attn": Attention, "img_norm2": nn.LayerNorm,
        "txt_norm2": nn.LayerNorm,
    }  # fmt: skip

    def width(self, block):
        return block.dim

    def layout(self, model, given):
        """How many image tokens come before those of the references."""
        layered = isinstance(getattr(model, "pos_embed", None), QwenEmbedLayer3DRope)
        return target_of_shapes(given.get("img_shapes"), layered)

    def bind(self, block, hidden_states, encoder_hidden_states, encoder_hidden_states_mask, temb,
             image_rotary_emb=None, joint_attention_kwargs=None, modulate_index=None):  # fmt: skip
        parts, attn = self.refuse(block, joint_attention_kwargs=joint_attention_kwargs), block.attn
        mask = encoder_hidden_states_mask
        if mask is not None and mask.is_floating_point():
            raise ValueError(
                "encoder_hidden_states_mask: attention adds a float mask, which leaves no token out; give it "
                "as bool"
            )
        modulation, groups = block.img_mod(temb).unflatten(-1, (6, -1)), None
        if modulate_index is not None:  # rows of the modulation: all samples' first ones, all second ones
            batch = hidden_states.shape[0]
            samples = torch.arange(batch, device=modulate_index.device)[:, None]
            groups = samples + batch * (modulate_index != 0)
        if block.zero_cond_t:
            temb = temb.chunk(2)[0]
        image, text = (None, None) if image_rotary_emb is None else map(_rope, image_rotary_emb)
        return Call(
            Stream(hidden_states, modulation, parts.attention(attn, image),
                   parts.mlp(block.img_mlp), block.img_norm1.eps, block.img_norm2.eps, groups=groups),
            text=Stream(encoder_hidden_states, block.txt_mod(temb).unflatten(-1, (6, -1)),
                        parts.attention(attn, text, ADDED), parts.mlp(block.txt_mlp),
                        block.txt_norm1.eps, block.txt_norm2.eps, valid=counting(block, mask)),
            layout=span(block, hidden_states, 0, told(block, self)),
            output=text_and_image,
        )  # fmt: skip


def _rope(turns: torch.Tensor) -> Rope:
    """Of complex numbers [N, d/2]."""
    return Rope(turns.real[None, :, None], turns.imag[None, :, None])


register_block_spec(QwenImageTransformerBlock, QwenImageSpec())
