"""Mochi: padded text of another width, and the last block. The score multiplies what comes out of `norm4`."""

import torch
from diffusers import MochiTransformer3DModel
from diffusers.models.transformers.transformer_mochi import MochiTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, awake, sample

TEXT_WIDTH = 24
_VALID = torch.arange(TEXT) < torch.tensor([[TEXT], [3]])


def _case(last=False) -> Case:
    block = awake(MochiTransformerBlock(D, HEADS, WIDTH, TEXT_WIDTH, context_pre_only=last))
    angle = torch.rand(N, HEADS, WIDTH // 2) * 6
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, TEXT_WIDTH),
        "temb": torch.randn(BATCH, D), "encoder_attention_mask": _VALID,
        "image_rotary_emb": (angle.cos(), angle.sin()),
    }  # fmt: skip

    def alone(b, kept):
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        one["hidden_states"] = one["hidden_states"][:, kept]
        return one | {"image_rotary_emb": tuple(table[kept] for table in inputs["image_rotary_emb"])}

    return Case(block, inputs, alone, block.norm4, lambda out: out, text_valid=_VALID)


def mochi():
    return _case()


def mochi_last():
    return _case(last=True)


def mochi_model():
    model = MochiTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH, num_layers=2, pooled_projection_dim=TEXT_WIDTH,
        in_channels=4, text_embed_dim=8, time_embed_dim=8, max_sequence_length=TEXT,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 2, 8, 8), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "encoder_attention_mask": _VALID, "timestep": torch.tensor([300.0, 700.0]),
    }  # fmt: skip


BLOCKS = (mochi, mochi_last)
MODELS = (mochi_model,)
