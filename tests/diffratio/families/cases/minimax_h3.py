"""MiniMax-H3: a block of one sequence [text, conditions, audio, video], half-split rope of some channels,
modulation by row; a whole model."""

import torch
from diffusers import MiniMaxH3Transformer3DModel
from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3TransformerBlock

from .case import BATCH, HEADS, TEXT, Case, D, N, angles, awake

CONDITION, AUDIO = 4, 3
START = TEXT + CONDITION + AUDIO
"""Of the video that is made."""


def _places() -> dict[str, torch.Tensor]:
    text, condition, audio, video = torch.arange(START + N).split([TEXT, CONDITION, AUDIO, N])
    return {"video_indices": torch.cat([condition, video]), "audio_indices": audio, "text_indices": text}


def minimax_h3():
    block = awake(MiniMaxH3TransformerBlock(D, HEADS, 24, 2 * D, D, 1e-5, 1e-5))
    table = (torch.cat([part, part], dim=1) for part in angles(START + N, 16, twice=False))  # of 24 channels
    inputs = {
        "hidden_states": torch.randn(BATCH, START + N, D),
        "temb": torch.randn(2, D),
        "adaln_indices": torch.randint(0, 6, (START + N,)),
        "rotary_emb": tuple(table),
    }

    def alone(b, kept):
        rows = torch.cat([torch.arange(START), START + kept])
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, rows],
            "temb": inputs["temb"],
            "adaln_indices": inputs["adaln_indices"][rows],
            "rotary_emb": tuple(table[rows] for table in inputs["rotary_emb"]),
        }

    return Case(
        block, inputs, alone, block.ff, image=lambda b: slice(START, START + N), mlp_start=lambda b: START,
        told=_places(),
    )  # fmt: skip


def minimax_h3_model():
    model = MiniMaxH3Transformer3DModel(
        num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=3, num_refiner_layers=1,
        ffn_dim=32, in_channels=4, audio_in_channels=6, text_dim=8, freq_dim=8, time_embed_hidden_dim=24,
        time_embed_dim=16, rope_freq_dim=2,
    )  # fmt: skip
    places = _places()
    video, audio = places["video_indices"], places["audio_indices"]
    tags, times = torch.ones(START + N, dtype=torch.long), torch.zeros(START + N, dtype=torch.long)
    tags[video], tags[audio] = 0, 2
    times[video[:CONDITION]], times[audio] = 2, 1
    position = torch.zeros(START + N, 3)
    position[:, 0] = torch.arange(START + N)
    return model, places | {
        "hidden_states": torch.randn(BATCH, CONDITION + N, 16),
        "audio_hidden_states": torch.randn(BATCH, AUDIO, 6),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 8), "timestep": torch.tensor([0.3, 0.7, 0.999]),
        "timestep_indices": times, "token_tags": tags, "position_ids": position,
    }  # fmt: skip


BLOCKS = (minimax_h3,)
MODELS = (minimax_h3_model,)
