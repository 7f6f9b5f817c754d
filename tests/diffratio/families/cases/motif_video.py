"""Motif-Video: joint and single blocks, with and without attention to the text once more; text whose first
tokens are those of an image."""

import torch
from diffusers import MotifVideoTransformer3DModel
from diffusers.models.transformers.transformer_motif_video import (
    MotifVideoSingleTransformerBlock,
    MotifVideoTransformerBlock,
)

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample

_VALID = torch.arange(TEXT) < torch.tensor([[TEXT], [4]])


def _case(block, mlp, padded=False, of_image=0) -> Case:
    rope = angles(N)
    valid = torch.cat([torch.ones(BATCH, N, dtype=torch.bool), _VALID], dim=1)[:, None, None]
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D), "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "temb": torch.randn(BATCH, D), "image_rotary_emb": rope, "image_embed_seq_len": of_image,
        "attention_mask": valid if padded else None,
    }  # fmt: skip

    def alone(b, kept):
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        one["hidden_states"] = one["hidden_states"][:, kept]
        if padded:
            one["attention_mask"] = one["attention_mask"][..., torch.cat([kept, torch.arange(N, N + TEXT)])]
        rope = tuple(table[kept] for table in inputs["image_rotary_emb"])
        return one | {"image_rotary_emb": rope, "image_embed_seq_len": of_image}

    case = Case(awake(block), inputs, alone, mlp, lambda out: out)
    case.text_valid = _VALID if padded else None
    return case


def _joint(**options):
    block = MotifVideoTransformerBlock(HEADS, WIDTH, 2, enable_text_cross_attention=bool(options))
    return _case(block, block.ff, **options)


def _single(**options):
    block = MotifVideoSingleTransformerBlock(HEADS, WIDTH, 2, enable_text_cross_attention=bool(options))
    return _case(block, block.act_mlp, **options)


def motif():
    return _joint()


def motif_again():
    return _joint(padded=True, of_image=2)


def motif_single():
    return _single()


def motif_single_again():
    return _single(padded=True, of_image=2)


def motif_model():
    model = MotifVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=HEADS, attention_head_dim=WIDTH, num_layers=1,
        num_single_layers=2, num_decoder_layers=1, mlp_ratio=2, text_embed_dim=8, image_embed_dim=6,
        rope_axes_dim=(4, 4, 8), enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 1, 12, 12),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "image_embeds": torch.randn(BATCH, 2, 6), "timestep": torch.tensor([300, 700]),
        "encoder_attention_mask": _VALID,
    }  # fmt: skip


BLOCKS = (motif, motif_again, motif_single, motif_single_again)
MODELS = (motif_model,)
