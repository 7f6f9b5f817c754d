"""AuraFlow: joint and single blocks; a whole model."""

import torch
from diffusers import AuraFlowTransformer2DModel
from diffusers.models.transformers.auraflow_transformer_2d import (
    AuraFlowJointTransformerBlock,
    AuraFlowSingleTransformerBlock,
)

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, awake, sample


def auraflow_joint():
    block = awake(AuraFlowJointTransformerBlock(D, HEADS, WIDTH))
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "temb": torch.randn(BATCH, D),
    }

    def alone(b, kept):
        others = {name: sample(inputs[name], b) for name in ("encoder_hidden_states", "temb")}
        return others | {"hidden_states": inputs["hidden_states"][b : b + 1, kept]}

    return Case(block, inputs, alone, block.ff, lambda out: (out[1], out[0]))


def auraflow_single():
    block = awake(AuraFlowSingleTransformerBlock(D, HEADS, WIDTH))
    inputs = {"hidden_states": torch.randn(BATCH, TEXT + N, D), "temb": torch.randn(BATCH, D)}

    def alone(b, kept):
        rows = torch.cat([torch.arange(TEXT), TEXT + kept])
        return {"hidden_states": inputs["hidden_states"][b : b + 1, rows], "temb": sample(inputs["temb"], b)}

    return Case(
        block, inputs, alone, block.ff, image=lambda b: slice(TEXT, TEXT + N), mlp_start=lambda b: TEXT,
        told={"encoder_hidden_states": torch.empty(BATCH, TEXT - 2, D)},
        model={"register_tokens": torch.empty(1, 2, D)},
    )  # fmt: skip


def auraflow_model():
    model = AuraFlowTransformer2DModel(
        sample_size=12, num_mmdit_layers=2, num_single_dit_layers=2, attention_head_dim=WIDTH,
        num_attention_heads=HEADS, joint_attention_dim=8, caption_projection_dim=D, pos_embed_max_size=64,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 12, 12), "timestep": torch.tensor([0.3, 0.7]),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
    }  # fmt: skip


BLOCKS = (auraflow_joint, auraflow_single)
MODELS = (auraflow_model,)
