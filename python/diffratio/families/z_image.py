"""Z-Image: one ragged sequence [image, text] per sample, RMS norms before and after the branches, gates by
tanh."""

from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_z_image import (
    SEQ_MULTI_OF,
    FeedForward,
    ZImageTransformerBlock,
    ZSingleStreamAttnProcessor,
)

from diffratio_kernels.blocks.stream import Call, Stream

from .mlp_modules import Layers
from .modules import ModuleSpec, complex_rope, ragged, scales_and_gates, told
from .registry import register_block_spec


class ZImageSpec(ModuleSpec):
    timestep_units = "clean"
    timestep_name = "t"
    plain = {"attention": Attention, "attention_norm1": RMSNorm, "ffn_norm1": RMSNorm}
    processors = (ZSingleStreamAttnProcessor,)
    mlps = {FeedForward: Layers(("w1", "w3"), "w2")}
    dense = dict.fromkeys(
        ("noise_refiner", "context_refiner", "siglip_refiner"), "it sees image or text alone"
    )

    def layout(self, model, given):
        """Places of each sample's image, and of what is always kept: its padding, text and text padding."""
        if isinstance(given["x"][0], list):  # omni mode, which `bind` refuses
            return None
        patch, frames = given.get("patch_size", 2), given.get("f_patch_size", 1)
        routed, pinned = [], []
        for image, text in zip(given["x"], given["cap_feats"], strict=True):
            _, f, h, w = image.shape
            tokens = (f // frames) * (h // patch) * (w // patch)
            routed.append((0, tokens))
            pinned.append((tokens, _padded(tokens) + _padded(text.shape[0])))
        return routed, pinned

    def bind(self, block, x, attn_mask, freqs_cis, adaln_input=None, noise_mask=None, adaln_noisy=None,
             adaln_clean=None):  # fmt: skip
        parts = self.refuse(block, noise_mask=noise_mask, adaln_noisy=adaln_noisy, adaln_clean=adaln_clean)
        norm1, norm2 = block.attention_norm1, block.ffn_norm1
        return Call(
            Stream(x, scales_and_gates(block.adaLN_modulation(adaln_input), norm1.weight, norm2.weight),
                   parts.attention(block.attention, complex_rope(freqs_cis)),
                   parts.mlp(block.feed_forward), norm1.eps, norm2.eps, "rms",
                   attention_norm=parts.row_norm(block.attention_norm2),
                   mlp_norm=parts.row_norm(block.ffn_norm2)),
            layout=ragged(block, x, *told(block, self)),
        )  # fmt: skip


def _padded(tokens: int) -> int:
    return tokens + -tokens % SEQ_MULTI_OF


register_block_spec(ZImageTransformerBlock, ZImageSpec())
