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

from diffratio_kernels.blocks.stream import Call, Layout, Rope, SelfAttention, Stream

from .mlp_modules import Layers
from .modules import ModuleSpec, image_and_text, ragged, told
from .registry import register_block_spec


class _HiDream(ModuleSpec):
    timestep_name = "timesteps"
    processors = (HiDreamAttnProcessor,)
    mlps = {HiDreamImageFeedForwardSwiGLU: Layers(("w1", "w3"), "w2")}

    def width(self, block):
        return block.attn1.query_dim

    def layout(self, model, given):
        """How many tokens each sample's image has, before its padding; one number is that of every sample."""
        if given.get("hidden_states_masks") is not None:
            return [int(height) * int(width) for height, width in given["img_sizes"]]
        height, width = given["hidden_states"].shape[-2:]
        return [(height // model.config.patch_size) * (width // model.config.patch_size)]

    def where(self, block, x: Tensor) -> Layout | None:
        sizes = told(block, self)
        return ragged(block, x, [(0, size) for size in sizes], [(size, x.shape[1]) for size in sizes])


class HiDreamSpec(_HiDream):
    plain = {
        "norm1_i": nn.LayerNorm, "norm1_t": nn.LayerNorm, "norm3_i": nn.LayerNorm, "norm3_t": nn.LayerNorm,
        "attn1": HiDreamAttention,
    }  # fmt: skip

    def bind(self, block, hidden_states, hidden_states_masks=None, encoder_hidden_states=None, temb=None,
             image_rotary_emb=None):  # fmt: skip
        parts, length = self.refuse(block), hidden_states.shape[1]
        of_image, of_text = block.adaLN_modulation(temb).unflatten(-1, (2, 6, -1)).unbind(1)
        own = _attention(parts, block.attn1, image_rotary_emb[:, :length], hidden_states_masks)
        text = _attention(parts, block.attn1, image_rotary_emb[:, length:], None, "_t")
        return Call(
            Stream(hidden_states, of_image, own, _by_rows(block.ff_i)),
            text=Stream(encoder_hidden_states, of_text, text, parts.mlp(block.ff_t)),
            layout=self.where(block, hidden_states),
            output=image_and_text,
        )


class HiDreamSingleSpec(_HiDream):
    plain = {"norm1_i": nn.LayerNorm, "norm3_i": nn.LayerNorm, "attn1": HiDreamAttention}

    def bind(self, block, hidden_states, hidden_states_masks=None, encoder_hidden_states=None, temb=None,
             image_rotary_emb=None):  # fmt: skip
        parts = self.refuse(block)
        modulation = block.adaLN_modulation(temb).unflatten(-1, (6, -1))
        own = _attention(parts, block.attn1, image_rotary_emb, hidden_states_masks)
        image = Stream(hidden_states, modulation, own, _by_rows(block.ff_i))
        return Call(image, layout=self.where(block, hidden_states))


def _attention(parts, attn, rope: Tensor, mask: Tensor | None, kind: str = "") -> SelfAttention:
    """rope: [B, N, 1, d/2, 2, 2]; mask [B, N] multiplies the keys."""
    project = tuple(parts.product(getattr(attn, f"to_{name}{kind}")) for name in "qkv")
    norms = tuple(getattr(attn, f"{name}_rms_norm{kind}") for name in "qk")
    rope = Rope(rope[..., 0, 0], rope[..., 1, 0])
    scale = None if mask is None else mask[..., None]
    out = parts.product(getattr(attn, f"to_out{kind}"))
    return SelfAttention(project, out, attn.heads, norms=norms, across_heads=True, rope=rope, key_scale=scale)


def _by_rows(mlp: nn.Module):
    """Experts are chosen in [b, k, D]."""

    def branch(normed, rows):
        return mlp(normed[None])[0]

    return branch


register_block_spec(HiDreamImageTransformerBlock, HiDreamSpec())
register_block_spec(HiDreamImageSingleTransformerBlock, HiDreamSingleSpec())
