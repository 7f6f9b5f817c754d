"""Bria FIBO 2: gist in front of the image and a context image, and padded gist behind; with and without
attention to the text."""

from types import SimpleNamespace

import torch
from diffusers import BriaFibo2Transformer2DModel
from diffusers.models.transformers.transformer_bria_fibo2 import BriaFibo2TransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample

TEXT_WIDTH, GIST, CONTEXT = 24, 4, 2
_TEXT = torch.arange(TEXT) < torch.tensor([[TEXT], [3]])


def _case(padded, cross) -> Case:
    block = awake(BriaFibo2TransformerBlock(D, HEADS, 1e-5, TEXT_WIDTH if cross else None))
    start, total = 0 if padded else GIST, GIST + N + CONTEXT
    places = torch.arange(total)
    made = (places >= start) & (places < start + N)
    valid = places < torch.tensor([[total], [total - 2]])
    turns = torch.complex(*angles(total, WIDTH, twice=False))[None]
    inputs = {
        "x": torch.randn(BATCH, total, D), "noise_mask": made.long().expand(BATCH, -1),
        "adaln_noisy": torch.randn(BATCH, D), "adaln_clean": torch.randn(BATCH, D),
    }  # fmt: skip
    if cross:
        inputs["encoder_hidden_states"] = torch.randn(BATCH, TEXT, TEXT_WIDTH)
        inputs["encoder_attention_mask"] = _TEXT

    def alone(b, kept):
        rows = torch.cat([torch.arange(start), start + kept, torch.arange(start + N, total)])
        one = {name: sample(value, b) for name, value in inputs.items()}
        one["x"], one["noise_mask"] = one["x"][:, rows], one["noise_mask"][:, rows]
        return one | {"attn_mask": valid[b : b + 1, rows] if padded else None, "freqs_cis": turns[:, rows]}

    given = inputs | {"attn_mask": valid if padded else None, "freqs_cis": turns}
    told = {"hidden_states": torch.empty(BATCH, 4, 6, 8), "context_latents": [torch.empty(BATCH, 4, 2, 4)]}
    case = Case(block, given, alone, block.ffn_norm2, tokens="x", told=told)
    case.image = lambda b: slice(start, start + N)
    case.mlp_start = lambda b: start
    case.valid = valid if padded else None
    case.model = {"config": SimpleNamespace(patch_size=2)}
    return case


def bria_fibo2():
    return _case(padded=False, cross=False)


def bria_fibo2_text():
    return _case(padded=True, cross=True)


def bria_fibo2_model():
    model = BriaFibo2Transformer2DModel(
        in_channels=4, dim=D, n_layers=2, n_refiner_layers=1, n_heads=HEADS, cap_feat_dim=TEXT_WIDTH,
        injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=2, max_num_gist_tokens=4,
        gist_step=1, gist_min_text_len=2, gist_max_text_len=6, axes_dims=(4, 4, 8), axes_lens=(32, 16, 16),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 12, 12), "timestep": torch.tensor([0.3, 0.7]),
        "encoder_hidden_states": torch.randn(BATCH, 2, TEXT, TEXT_WIDTH), "encoder_attention_mask": _TEXT,
        "context_latents": [torch.randn(BATCH, 4, 4, 4)],
    }  # fmt: skip


bria_fibo2_model.graphs = "the host reads the lengths of the texts"

BLOCKS = (bria_fibo2, bria_fibo2_text)
MODELS = (bria_fibo2_model,)
