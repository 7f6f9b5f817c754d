"""Qwen-Image 2.1: text, a condition image and the image; with padded text, one timestep, a filled cache."""

import torch
from diffusers import QwenImage21Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage21 import (
    QwenImage21KVLayerCache,
    QwenImage21TransformerBlock,
)

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, awake, sample

BEFORE = TEXT + 4 + 2
"""Text, a condition image, text."""
SEGMENTS = [(0, TEXT, True), (TEXT, TEXT + 4, False), (TEXT + 4, BEFORE, True)]


def _case(two_timesteps=True, padded=False, cached=False) -> Case:
    block = awake(QwenImage21TransformerBlock(D, HEADS, WIDTH))
    start = 0 if cached else BEFORE
    rope = torch.randn(start + N, WIDTH // 2) * 3
    inputs = {
        "hidden_states": torch.randn(BATCH, start + N, D),
        "modulation": torch.randn(BATCH + two_timesteps, 4 * D),
        "rotary_emb": torch.polar(torch.ones_like(rope), rope),
    }
    valid = torch.ones(BATCH, BEFORE + N, dtype=torch.bool)
    valid[1, 3:TEXT] = False
    cache = torch.randn(2, BATCH, BEFORE, HEADS, WIDTH)
    if two_timesteps:
        inputs["target_token_mask"] = torch.arange(start + N) >= start
    if cached:
        inputs |= {"layer_cache": _Filled(block, *cache), "kv_cache_mode": "cached"}
        inputs["attention_mask"] = valid[:, None, None] if padded else None
    else:
        inputs |= {"segments": SEGMENTS, "key_valid": valid if padded else None}

    def alone(b, kept):
        rows = torch.cat([torch.arange(start), start + kept])
        keys = torch.cat([torch.arange(BEFORE), BEFORE + kept])
        one = dict(inputs)
        one["hidden_states"] = inputs["hidden_states"][b : b + 1, rows]
        one["rotary_emb"] = inputs["rotary_emb"][rows]
        if two_timesteps:
            one["target_token_mask"] = inputs["target_token_mask"][rows]
            one["modulation"] = inputs["modulation"][[b, BATCH]]
        else:
            one["modulation"] = sample(inputs["modulation"], b)
        if cached:
            one["layer_cache"] = _Filled(block, *cache[:, b : b + 1])
            one["attention_mask"] = valid[b : b + 1, None, None, keys] if padded else None
        else:
            one["key_valid"] = valid[b : b + 1, keys] if padded else None
        return one

    case = Case(block, inputs, alone, block.img_mlp, image=lambda b: slice(start, start + N))
    case.mlp_start = lambda b: start
    return case


def qwenimage21():
    return _case()


def qwenimage21_padded():
    return _case(padded=True)


def qwenimage21_one_timestep():
    return _case(two_timesteps=False)


def qwenimage21_cached():
    return _case(cached=True, padded=True)


class _Filled(QwenImage21KVLayerCache):
    """In the dtype that the block has now."""

    def __init__(self, block, key, value):
        super().__init__()
        self.block = block
        self.store(key, value)

    def get(self):
        dtype = self.block.attn.to_k.weight.dtype
        return self.k.to(dtype), self.v.to(dtype)


def qwenimage21_model():
    model = QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=WIDTH, num_attention_heads=HEADS,
        context_in_dim=8, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    before = torch.zeros(TEXT + 4 + 1, dtype=torch.bool)
    before[TEXT : TEXT + 4] = True  # 16 tokens of a condition image
    mask = torch.ones(BATCH, len(before), dtype=torch.bool)
    mask[1, 3:TEXT] = False
    return model, {
        "hidden_states": torch.randn(BATCH, 16 + 36, 4),
        "encoder_hidden_states": torch.randn(BATCH, len(before), 8), "encoder_hidden_states_mask": mask,
        "timestep": torch.tensor([0.3, 0.7]), "img_shapes": [[(1, 4, 4), (1, 6, 6)]] * BATCH,
        "img_mask": torch.cat([before, torch.ones(9, dtype=torch.bool)]).expand(BATCH, -1),
    }  # fmt: skip


qwenimage21_model.graphs = "its model finds the image by a mask"

BLOCKS = (qwenimage21, qwenimage21_padded, qwenimage21_one_timestep, qwenimage21_cached)
MODELS = (qwenimage21_model,)
