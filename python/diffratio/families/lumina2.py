"""Lumina 2: one ragged sequence [text, image] per sample, RMS norms before and after the branches, gates by
tanh, query heads that share keys and values."""

from diffusers.models.attention import LuminaFeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import LuminaRMSNormZero, RMSNorm
from diffusers.models.transformers.transformer_lumina2 import Lumina2AttnProcessor2_0, Lumina2TransformerBlock

from diffratio_kernels.blocks.stream import Call, Stream

from .mlp_modules import Layers
from .modules import ModuleSpec, complex_rope, ragged, scales_and_gates, told
from .registry import register_block_spec


class Lumina2Spec(ModuleSpec):
    timestep_units = "clean"
    plain = {"norm1": LuminaRMSNormZero, "norm1.norm": RMSNorm, "attn": Attention, "ffn_norm1": RMSNorm}
    processors = (Lumina2AttnProcessor2_0,)
    mlps = {LuminaFeedForward: Layers(("linear_1", "linear_3"), "linear_2")}
    dense = dict.fromkeys(("noise_refiner", "context_refiner"), "it sees image or text alone")

    def layout(self, model, given):
        """Tokens of each sample's text: the model's forward reads the mask as well."""
        return [int(length) for length in given["encoder_attention_mask"].sum(1).tolist()]

    def bind(self, block, hidden_states, attention_mask, image_rotary_emb, temb=None):
        parts, attn, norm = self.refuse(block), block.attn, block.norm1.norm
        texts = told(block, self)
        image = hidden_states.shape[1] - max(texts)
        modulation = block.norm1.linear(block.norm1.silu(temb))
        attention = parts.attention(
            attn, complex_rope(image_rotary_emb),
            kv_heads=attn.inner_kv_dim * attn.heads // attn.inner_dim,
        )  # fmt: skip
        return Call(
            Stream(hidden_states, scales_and_gates(modulation, norm.weight, block.ffn_norm1.weight),
                   attention, parts.mlp(block.feed_forward), norm.eps, block.ffn_norm1.eps, "rms",
                   attention_norm=parts.row_norm(block.norm2),
                   mlp_norm=parts.row_norm(block.ffn_norm2)),
            layout=ragged(block, hidden_states, [(text, text + image) for text in texts],
                          [(0, text) for text in texts]),
        )  # fmt: skip


register_block_spec(Lumina2TransformerBlock, Lumina2Spec())
