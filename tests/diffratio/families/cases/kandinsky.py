"""Kandinsky 5: the blocks of the picture."""

import torch
from diffusers import Kandinsky5Transformer3DModel
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5TransformerDecoderBlock

from .case import BATCH, TEXT, WIDTH, Case, D, N, angles, awake, sample

EMBEDDING = 24


def kandinsky5():
    block = Kandinsky5TransformerDecoderBlock(D, EMBEDDING, 2 * D, WIDTH)
    cos, sin = angles(N, twice=False)
    rope = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))[:, None]
    inputs = {
        "visual_embed": torch.randn(BATCH, N, D), "text_embed": torch.randn(BATCH, TEXT, D),
        "time_embed": torch.randn(BATCH, EMBEDDING), "rope": rope, "sparse_params": None,
    }  # fmt: skip

    def alone(b, kept):
        one = {name: sample(inputs[name], b) for name in ("visual_embed", "text_embed", "time_embed")}
        one["visual_embed"] = one["visual_embed"][:, kept]
        return one | {"rope": rope[kept], "sparse_params": None}

    # Turned heads are rounded to bf16: a sum in another order may fall on the other side of a step of 2^-8.
    return Case(
        awake(block), inputs, alone, block.feed_forward, tokens="visual_embed", tolerance={"atol": 1e-4}
    )


def kandinsky5_model():
    model = Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=8, in_text_dim2=6, time_dim=EMBEDDING, out_visual_dim=4,
        model_dim=D, ff_dim=2 * D, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 4, 8),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 1, 12, 12, 4),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "timestep": torch.tensor([300.0, 700.0]), "pooled_projections": torch.randn(BATCH, 6),
        "visual_rope_pos": [torch.arange(1), torch.arange(6), torch.arange(6)],
        "text_rope_pos": torch.arange(TEXT),
    }  # fmt: skip


BLOCKS = (kandinsky5,)
MODELS = (kandinsky5_model,)
