"""Wan-Animate: Wan's blocks, in classes of their own."""

from diffusers.models.transformers.transformer_wan_animate import (
    WanAttention,
    WanAttnProcessor,
    WanTransformerBlock,
)

from .registry import register_block_spec
from .wan import WanSpec

register_block_spec(WanTransformerBlock, WanSpec(WanAttention, WanAttnProcessor))
