"""Ovis-Image: FLUX.1's blocks with gated MLPs."""

from diffusers.models.transformers.transformer_ovis_image import (
    OvisImageAttention,
    OvisImageAttnProcessor,
    OvisImageSingleTransformerBlock,
    OvisImageTransformerBlock,
)

from .flux import FluxSingleSpec, FluxSpec
from .registry import register_block_spec


class OvisImageSpec(FluxSpec):
    plain = FluxSpec.plain | {"attn": OvisImageAttention}
    processors = (OvisImageAttnProcessor,)


class OvisImageSingleSpec(FluxSingleSpec):
    plain = FluxSingleSpec.plain | {"attn": OvisImageAttention}
    processors = (OvisImageAttnProcessor,)
    gate = "last"


register_block_spec(OvisImageTransformerBlock, OvisImageSpec())
register_block_spec(OvisImageSingleTransformerBlock, OvisImageSingleSpec())
