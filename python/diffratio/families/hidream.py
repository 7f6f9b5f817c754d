"""HiDream-I1: joint blocks, then blocks of one sequence [image, text]; MLPs of experts, each token by itself.
An image that is not square is padded, and its padding is attended to by keys of zero."""

from diffusers.models.transformers.transformer_hidream_image import (
    HiDreamAttention,
    HiDreamAttnProcessor,
    HiDreamImageFeedForwardSwiGLU,
    HiDreamImageSingleTransformerBlock,
    HiDreamImageTransformerBlock,
)
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Call, Rope, SelfAttention, Stream

from .mlp_modules import Layers
from .modules import ModuleSpec, image_and_text, ragged, told
from .parts import Names, Parts
from .registry import register_block_spec


class HiDreamSpec(ModuleSpec):
    """Of both kinds: the attention of one says that it is single."""

    timestep_name = "timesteps"
    plain = dict.fromkeys(("norm1_i", "norm1_t", "norm3_i", "norm3_t"), nn.LayerNorm)
    plain["attn1"] = HiDreamAttention
    processors = (HiDreamAttnProcessor,)
    mlps = {HiDreamImageFeedForwardSwiGLU: Layers(("w1", "w3"), "w2")}

    def layout(self, model, given):
        """How many tokens each sample's image has, before its padding; one number is that of every sample."""
        if given.get("hidden_states_masks") is not None:
            return [int(height) * int(width) for height, width in given["img_sizes"]]
        height, width = given["hidden_states"].shape[-2:]
        return [(height // model.config.patch_size) * (width // model.config.patch_size)]

    def bind(self, block, hidden_states, hidden_states_masks=None, encoder_hidden_states=None, temb=None,
             image_rotary_emb=None):  # fmt: skip
        parts, x, sizes = self.refuse(block), hidden_states, told(block, self)
        modulation = block.adaLN_modulation(temb).unflatten(-1, (-1, 6, x.shape[2]))
        own, other = image_rotary_emb.tensor_split([x.shape[1]], dim=1)
        own = _attention(block, parts, own)
        if hidden_states_masks is not None:
            own.key_scale = hidden_states_masks[..., None]
        layout = ragged(block, x, [(0, size) for size in sizes], [(size, x.shape[1]) for size in sizes])
        call = Call(Stream(x, modulation[:, 0], own, _by_rows(block.ff_i)), layout=layout)
        if not block.attn1.single:
            attention, mlp = _attention(block, parts, other, "_t"), parts.mlp(block.ff_t)
            call.text = Stream(encoder_hidden_states, modulation[:, 1], attention, mlp)
            call.output = image_and_text
        return call


def _attention(block, parts: Parts, rope: Tensor, kind: str = "") -> SelfAttention:
    """rope: [B, N, 1, d/2, 2, 2]."""
    project, norms = (f"to_q{kind}", f"to_k{kind}", f"to_v{kind}"), (f"q_rms_norm{kind}", f"k_rms_norm{kind}")
    rope = Rope(rope[..., 0, 0], rope[..., 1, 0])
    names = Names(project, f"to_out{kind}", norms)
    return parts.attention(block.attn1, rope, names, across_heads=True)


def _by_rows(mlp: nn.Module):
    """Experts are chosen in [b, k, D]."""

    def branch(normed, rows):
        return mlp(normed[None])[0]

    return branch


register_block_spec(HiDreamImageTransformerBlock, HiDreamSpec())
register_block_spec(HiDreamImageSingleTransformerBlock, HiDreamSpec())
