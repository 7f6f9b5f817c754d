"""LongCat-Image and its edit model: FLUX.1's blocks under other names."""

from diffusers.models.transformers.transformer_longcat_image import (
    LongCatImageAttention,
    LongCatImageAttnProcessor,
    LongCatImageSingleTransformerBlock,
    LongCatImageTransformerBlock,
)

from .flux import FluxSingleSpec, FluxSpec
from .registry import register_block_spec


class LongCatImageSpec(FluxSpec):
    plain = FluxSpec.plain | {"attn": LongCatImageAttention}
    processors = (LongCatImageAttnProcessor,)


class LongCatImageSingleSpec(FluxSingleSpec):
    plain = FluxSingleSpec.plain | {"attn": LongCatImageAttention}
    processors = (LongCatImageAttnProcessor,)


register_block_spec(LongCatImageTransformerBlock, LongCatImageSpec())
register_block_spec(LongCatImageSingleTransformerBlock, LongCatImageSingleSpec())
