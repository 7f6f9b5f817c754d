"""FLUX.2 dev and klein: FLUX's two kinds of blocks with modulation that the model makes once, and single
blocks with one projection in front of attention and MLP."""

import torch
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2AttnProcessor,
    Flux2FeedForward,
    Flux2ParallelSelfAttention,
    Flux2ParallelSelfAttnProcessor,
    Flux2SingleTransformerBlock,
    Flux2SwiGLU,
    Flux2TransformerBlock,
)
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Call, Parallel, Stream
from diffratio_kernels.types import Activation

from .flux_kind import SequenceSpec
from .mlp_modules import Layers, know
from .modules import clipped, pairs, six, text_and_image, told
from .parts import Names
from .registry import register_block_spec

know(Flux2SwiGLU, Activation("silu", gate="first"))


def _modulation(mod: Tensor, x: Tensor, parts: int) -> Tensor:
    """[B or 1, (1,) parts * D] -> [B, 6, D]."""
    return six(mod.flatten(0, -2).unflatten(-1, (parts, -1)).expand(x.shape[0], -1, -1))


class Flux2Spec(SequenceSpec):
    plain = dict.fromkeys(("norm1", "norm1_context", "norm2", "norm2_context"), nn.LayerNorm)
    plain["attn"] = Flux2Attention
    processors = (Flux2AttnProcessor,)
    mlps = {Flux2FeedForward: Layers(("linear_in",), "linear_out")}

    def bind(self, block, hidden_states, encoder_hidden_states, temb_mod_img, temb_mod_txt,
             image_rotary_emb=None, joint_attention_kwargs=None):  # fmt: skip
        parts, valid = self.taken(block, joint_attention_kwargs=joint_attention_kwargs)
        modulation = (_modulation(mod, hidden_states, 6) for mod in (temb_mod_img, temb_mod_txt))
        tokens = hidden_states, encoder_hidden_states
        return self.joint(block, parts, tokens, tuple(modulation), image_rotary_emb, valid)


class Flux2SingleSpec(SequenceSpec):
    plain = {"norm": nn.LayerNorm, "attn": Flux2ParallelSelfAttention}
    processors = (Flux2ParallelSelfAttnProcessor,)

    def bind(self, block, hidden_states, encoder_hidden_states, temb_mod, image_rotary_emb=None,
             joint_attention_kwargs=None, split_hidden_states=False, text_seq_len=None):  # fmt: skip
        parts, valid = self.taken(block, joint_attention_kwargs=joint_attention_kwargs)
        x, attn = hidden_states, block.attn
        if encoder_hidden_states is not None:
            text_seq_len = encoder_hidden_states.shape[1]
            x = torch.cat([encoder_hidden_states, x], dim=1)
        length = told(block, self)[0] if text_seq_len is None else text_seq_len

        def output(x, _):
            return text_and_image(x[:, length:], x[:, :length]) if split_hidden_states else clipped(x)

        attention = parts.attention(attn, pairs(image_rotary_emb), Names("to_qkv_mlp_proj", None))
        columns = attn.mlp_hidden_dim * attn.mlp_mult_factor
        known = parts.activations.get(id(attn.mlp_act_fn))
        mlp = Parallel(None if known else attn.mlp_act_fn, parts.product(attn.to_out), columns, known)
        image = Stream(x, _modulation(temb_mod, x, 3), attention, mlp, block.norm.eps)
        return Call(image, layout=self.whole(block, x, length, valid), output=output)


register_block_spec(Flux2TransformerBlock, Flux2Spec())
register_block_spec(Flux2SingleTransformerBlock, Flux2SingleSpec())
