"""Lumina 2: blocks of one sequence [text, image], of one length and ragged, keys and values shared by two
heads; a whole model with two texts in a batch."""

import torch
from diffusers import Lumina2Transformer2DModel
from diffusers.models.transformers.transformer_lumina2 import Lumina2TransformerBlock

from .case import BATCH, HEADS, WIDTH, Case, N, angles, awake, sample

DIM = 2 * HEADS * WIDTH


def _case(texts: list[int]) -> Case:
    block = awake(Lumina2TransformerBlock(DIM, 2 * HEADS, HEADS, 8, 1.0, 1e-5))
    lengths = torch.tensor([text + N for text in texts])
    rows = max(texts) + N
    valid = torch.arange(rows) < lengths[:, None]
    inputs = {
        "hidden_states": torch.randn(BATCH, rows, DIM),
        "attention_mask": None if valid.all() else valid,
        "image_rotary_emb": torch.complex(*angles(BATCH * rows, twice=False)).view(BATCH, rows, -1),
        "temb": torch.randn(BATCH, DIM),
    }

    def alone(b, kept):
        text = texts[b]
        places = torch.cat([torch.arange(text), text + kept, torch.arange(text + N, rows)])
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, places],
            "attention_mask": valid[b : b + 1, places],
            "image_rotary_emb": inputs["image_rotary_emb"][b : b + 1, places],
            "temb": sample(inputs["temb"], b),
        }

    mask = torch.arange(max(texts)) < torch.tensor(texts)[:, None]
    return Case(
        block, inputs, alone, block.ffn_norm2, image=lambda b: slice(texts[b], texts[b] + N),
        mlp_start=lambda b: texts[b], told={"encoder_attention_mask": mask}, valid=valid,
    )  # fmt: skip


def lumina2():
    return _case([5, 5])


def lumina2_ragged():
    return _case([3, 7])


def lumina2_model():
    model = Lumina2Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, hidden_size=32, num_layers=3, num_refiner_layers=1,
        num_attention_heads=4, num_kv_heads=2, multiple_of=2, axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128), cap_feat_dim=32,
    )  # fmt: skip
    mask = torch.ones(BATCH, 10, dtype=torch.bool)
    mask[1, 6:] = False
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 12, 12), "encoder_hidden_states": torch.randn(BATCH, 10, 32),
        "timestep": torch.tensor([0.3, 0.7]), "encoder_attention_mask": mask,
    }  # fmt: skip


lumina2_model.graphs = "the host reads the lengths of the texts"

BLOCKS = (lumina2, lumina2_ragged)
MODELS = (lumina2_model,)
