"""MiniMax-H3: one sequence of text, conditions, audio and video, RMS norms, modulation by the timestep and
the kind of each row. Rows of the video that is made are routed."""

import torch
from diffusers.models.transformers.transformer_minimax_h3 import (
    MiniMaxH3Attention,
    MiniMaxH3AttnProcessor,
    MiniMaxH3TransformerBlock,
)
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Call, Layout, Rope, Stream, fold

from .modules import ModuleSpec, told
from .references import read_once
from .registry import register_block_spec


class MiniMaxH3Spec(ModuleSpec):
    timestep_units = "clean"
    timesteps_of_tokens = True
    plain = {"norm1": nn.RMSNorm, "norm2": nn.RMSNorm, "attn": MiniMaxH3Attention}
    processors = (MiniMaxH3AttnProcessor,)

    def width(self, block):
        return block.norm1.normalized_shape[0]

    def layout(self, model, given):
        """Rows in the order: those of the video that is made, all others; and how many are the first."""
        video, audio, text = (given[f"{name}_indices"] for name in ("video", "audio", "text"))
        made = video.shape[0] if video.is_meta else read_once("minimax_h3", _last_run, video)
        return torch.cat([video[video.shape[0] - made :], video[: video.shape[0] - made], audio, text]), made

    def bind(self, block, hidden_states, temb, adaln_indices, rotary_emb, attention_mask=None):
        parts, x = self.refuse(block, attention_mask=attention_mask), hidden_states
        (order, made), (batch, rows) = told(block, self), x.shape[:2]
        if order.shape[0] != rows:
            raise ValueError(f"video, audio and text indices are {order.shape[0]} of {rows} rows")
        shift1, scale1, gate1, shift2, scale2, gate2 = block.adaln_proj(temb)
        shift1, scale1 = fold(scale1, block.norm1.weight, shift1)
        shift2, scale2 = fold(scale2, block.norm2.weight, shift2)
        cos, sin = (table[None, :, None, : table.shape[1] // 2] for table in rotary_emb)
        return Call(
            Stream(x, torch.stack([shift1, scale1, gate1, shift2, scale2, gate2], dim=1),
                   parts.attention(block.attn, Rope(cos, sin, halves=True), fused=True), parts.mlp(block.ff),
                   block.norm1.eps, block.norm2.eps, "rms", adaln_indices.expand(batch, rows)),
            layout=Layout(order.expand(batch, rows), [made], [rows - made]),
        )  # fmt: skip


def _last_run(places: Tensor) -> int:
    """How many of the last places follow each other: conditions are apart from the video that is made."""
    breaks = (places[1:] != places[:-1] + 1).nonzero()
    return places.shape[0] - (int(breaks[-1]) + 1 if breaks.shape[0] else 0)


register_block_spec(MiniMaxH3TransformerBlock, MiniMaxH3Spec())
