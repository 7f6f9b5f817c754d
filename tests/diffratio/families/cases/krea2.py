"""Krea 2: a block of one sequence [text, image], with and without padding in the text; a whole model."""

import torch
from diffusers import Krea2Transformer2DModel
from diffusers.models.transformers.transformer_krea2 import Krea2TransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, N, angles, awake, sample

DIM = 2 * HEADS * WIDTH


def _case(padding: int) -> Case:
    block = awake(Krea2TransformerBlock(DIM, 3 * DIM, 2 * HEADS, HEADS, 1e-5))
    valid = torch.ones(BATCH, TEXT + N, dtype=torch.bool)
    valid[-1, TEXT - padding : TEXT] = False
    mask = valid[:, None, None]
    inputs = {
        "hidden_states": torch.randn(BATCH, TEXT + N, DIM),
        "temb": torch.randn(BATCH, 1, 6 * DIM),
        "image_rotary_emb": angles(TEXT + N),
        "attention_mask": mask if padding else None,
    }

    def alone(b, kept):
        rows = torch.cat([torch.arange(TEXT), TEXT + kept])
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, rows],
            "temb": sample(inputs["temb"], b),
            "image_rotary_emb": tuple(table[rows] for table in inputs["image_rotary_emb"]),
            "attention_mask": mask[b : b + 1, ..., rows],
        }

    told = {"encoder_hidden_states": torch.empty(BATCH, TEXT, 1, 1)}
    return Case(
        block, inputs, alone, block.ff, image=lambda b: slice(TEXT, TEXT + N), mlp_start=lambda b: TEXT,
        told=told, valid=valid,
    )  # fmt: skip


def krea2():
    return _case(0)


def krea2_padded():
    return _case(2)


def krea2_model():
    model = Krea2Transformer2DModel(
        in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=16, num_text_layers=2,
        text_num_attention_heads=2, text_num_key_value_heads=1, text_intermediate_size=16,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    position = torch.zeros(7 + 36, 3)
    position[7:, 1], position[7:, 2] = torch.arange(36) // 6, torch.arange(36) % 6
    mask = torch.ones(BATCH, 7, dtype=torch.bool)
    mask[1, -2:] = False
    return model, {
        "hidden_states": torch.randn(BATCH, 36, 4), "encoder_hidden_states": torch.randn(BATCH, 7, 2, 16),
        "timestep": torch.tensor([0.3, 0.7]), "position_ids": position, "encoder_attention_mask": mask,
    }  # fmt: skip


BLOCKS = (krea2, krea2_padded)
MODELS = (krea2_model,)
