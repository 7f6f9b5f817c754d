"""Ideogram 4: blocks of one sequence [padding, text, image], with one timestep and with one for each token; a
whole model."""

import torch
from diffusers import Ideogram4Transformer2DModel
from diffusers.models.transformers.transformer_ideogram4 import Ideogram4TransformerBlock

from .case import BATCH, HEADS, TEXT, Case, D, N, angles, awake, sample


def _roles(text: int, image: int, padding: int) -> dict[str, torch.Tensor]:
    indicator = torch.cat([torch.full((BATCH, text), 3), torch.full((BATCH, image), 2)], dim=1)
    segments = torch.ones_like(indicator)
    indicator[1, :padding], segments[1, :padding] = 0, -1
    return {"indicator": indicator, "segment_ids": segments}


def _case(padding: int, per_token: bool) -> Case:
    block = awake(Ideogram4TransformerBlock(D, 2 * D, HEADS, 1e-5, 8))
    roles, rows = _roles(TEXT, N, padding), TEXT + N
    segments = roles["segment_ids"]
    pairs = (segments[:, :, None] == segments[:, None])[:, None]
    table = [torch.cat([part, part], 1).view(BATCH, rows, -1) for part in angles(BATCH * rows, twice=False)]
    inputs = {
        "hidden_states": torch.randn(BATCH, rows, D),
        "attention_mask": pairs,
        "image_rotary_emb": torch.stack(table),  # of the type of the tokens
        "adaln_input": torch.randn(BATCH, rows if per_token else 1, 8),
    }

    def alone(b, kept):
        places = torch.cat([torch.arange(TEXT), TEXT + kept])
        adaln = sample(inputs["adaln_input"], b)
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, places],
            "attention_mask": pairs[b : b + 1][:, :, places][..., places],
            "image_rotary_emb": inputs["image_rotary_emb"][:, b : b + 1, places],
            "adaln_input": adaln[:, places] if per_token else adaln,
        }

    return Case(
        block, inputs, alone, block.ffn_norm2, image=lambda b: slice(TEXT, rows), mlp_start=lambda b: TEXT,
        told=roles, valid=segments == 1,
    )  # fmt: skip


def ideogram4():
    return _case(2, per_token=False)


def ideogram4_per_token():
    return _case(0, per_token=True)


def ideogram4_model():
    model = Ideogram4Transformer2DModel(
        in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2, intermediate_size=32,
        adaln_dim=8, llm_features_dim=8, mrope_section=(4, 2, 2),
    )  # fmt: skip
    image = 36
    position = torch.zeros(BATCH, TEXT + image, 3, dtype=torch.long)
    position[:, :TEXT] = torch.arange(TEXT)[:, None]
    position[:, TEXT:, 1], position[:, TEXT:, 2] = torch.arange(image) // 6, torch.arange(image) % 6
    return model, _roles(TEXT, image, 0) | {
        "hidden_states": torch.randn(BATCH, TEXT + image, 4), "timestep": torch.tensor([0.3, 0.7]),
        "encoder_hidden_states": torch.randn(BATCH, TEXT + image, 8), "position_ids": position,
    }  # fmt: skip


BLOCKS = (ideogram4, ideogram4_per_token)
MODELS = (ideogram4_model,)
