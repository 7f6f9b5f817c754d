"""VACE: beside Wan's blocks some whose tokens are those of a control video. A token that they skip hands on
what came in, and so does its hint for the video."""

from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformerBlock

from .registry import register_block_spec
from .wan import WanSpec


class VACESpec(WanSpec):
    def bind(self, block, hidden_states, encoder_hidden_states, control_hidden_states, temb, rotary_emb):
        x = control_hidden_states
        if block.proj_in is not None:
            x = block.proj_in(x) + hidden_states
        call = self.call(block, x, encoder_hidden_states, temb, rotary_emb)

        def output(control, _):
            control = control.type_as(x)
            return None if block.proj_out is None else block.proj_out(control), control

        call.output = output
        return call


register_block_spec(WanVACETransformerBlock, VACESpec(WanAttention, WanAttnProcessor))
