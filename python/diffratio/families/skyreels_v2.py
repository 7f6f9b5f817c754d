"""SkyReels V2: Wan's blocks; with diffusion forcing every frame has a timestep of its own."""

from diffusers.models.transformers.transformer_skyreels_v2 import (
    SkyReelsV2Attention,
    SkyReelsV2AttnProcessor,
    SkyReelsV2TransformerBlock,
)

from .registry import register_block_spec
from .wan import WanSpec


class SkyReelsSpec(WanSpec):
    def bind(self, block, hidden_states, encoder_hidden_states, temb, rotary_emb, attention_mask):
        self.refuse(block, attention_mask=attention_mask)
        temb = temb if temb.dim() == 3 else temb.transpose(1, 2)
        return self.call(block, hidden_states, encoder_hidden_states, temb, rotary_emb)


register_block_spec(SkyReelsV2TransformerBlock, SkyReelsSpec(SkyReelsV2Attention, SkyReelsV2AttnProcessor))
