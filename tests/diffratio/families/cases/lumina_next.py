"""Lumina-Next: grouped heads, padded text, attention that grows with the number of tokens."""

import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from diffusers.models.transformers.lumina_nextdit2d import LuminaNextDiTBlock

from .case import BATCH, TEXT, Case, N, angles, awake, sample

HEADS, KEYS, WIDTH = 4, 2, 8
D = HEADS * WIDTH
TEXT_WIDTH = 24
_VALID = torch.arange(TEXT) < torch.tensor([[TEXT], [3]])


def _case(**kwargs) -> Case:
    block = LuminaNextDiTBlock(D, HEADS, KEYS, 16, None, 1e-5, True, TEXT_WIDTH)
    turns = torch.complex(*angles(N, WIDTH, twice=False))[None]
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, TEXT_WIDTH),
        "attention_mask": torch.ones(BATCH, N, dtype=torch.int32), "encoder_mask": _VALID,
        "temb": torch.randn(BATCH, D),
    }  # fmt: skip
    more = {"cross_attention_kwargs": kwargs}

    def alone(b, kept):
        one = {name: sample(value, b) for name, value in inputs.items()} | more
        for name in ("hidden_states", "attention_mask"):
            one[name] = one[name][:, kept]
        return one | {"image_rotary_emb": turns[:, kept]}

    given = inputs | more | {"image_rotary_emb": turns}
    return Case(awake(block), given, alone, block.ffn_norm2)


def lumina_next():
    return _case()


def lumina_next_large():
    return _case(base_sequence_length=4)


def lumina_next_model():
    model = LuminaNextDiT2DModel(
        sample_size=8, in_channels=4, hidden_size=D, num_layers=2, num_attention_heads=HEADS,
        num_kv_heads=KEYS, multiple_of=16, learn_sigma=False, cross_attention_dim=TEXT_WIDTH,
    )  # fmt: skip
    torch.nn.init.zeros_(model.pad_token)
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 12, 12), "encoder_mask": _VALID,
        "encoder_hidden_states": torch.randn(BATCH, TEXT, TEXT_WIDTH), "timestep": torch.tensor([0.3, 0.7]),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(WIDTH, 16, 16), "cross_attention_kwargs": {},
    }  # fmt: skip


lumina_next_model.checkpointing = "diffusers runs this model without checkpointing"
BLOCKS = (lumina_next, lumina_next_large)
MODELS = (lumina_next_model,)
