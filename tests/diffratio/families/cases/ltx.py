"""LTX-Video: with a text mask, a modulation of every token, norms with weights."""

import torch
from diffusers import LTXVideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample


def _case(mask: bool = True, per_token: bool = False, batched: bool = True, **more) -> Case:
    block = LTXVideoTransformerBlock(D, HEADS, WIDTH, 24, **more)
    tables = [angles(N, D, seed=b) for b in range(BATCH if batched else 1)]
    valid = torch.ones(BATCH, TEXT, dtype=torch.bool)
    valid[0, 1], valid[1, 3:] = False, False
    added = torch.where(valid, 0.0, -10000.0)[:, None]
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 24),
        "temb": torch.randn(BATCH, N if per_token else 1, 6 * D),
        "image_rotary_emb": tuple(torch.stack(parts) for parts in zip(*tables, strict=True)),
        "encoder_attention_mask": added if mask else None,
    }

    def alone(b, kept):
        temb = sample(inputs["temb"], b)
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, kept],
            "encoder_hidden_states": sample(inputs["encoder_hidden_states"], b),
            "temb": temb[:, kept] if per_token else temb,
            "image_rotary_emb": tuple(
                table[b % len(table), kept][None] for table in inputs["image_rotary_emb"]
            ),
            "encoder_attention_mask": sample(added, b) if mask else None,
        }

    told = {"encoder_attention_mask": valid.long()} if mask and batched else {}
    return Case(awake(block), inputs, alone, block.ff, told=told)


def ltx():
    return _case()


def ltx_unmasked():
    return _case(mask=False, batched=False)


def ltx_i2v():
    return _case(per_token=True, batched=False)


def ltx_affine():
    return _case(elementwise_affine=True)


def _model(**more):
    model = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=HEADS, attention_head_dim=WIDTH, num_layers=2,
        cross_attention_dim=D, caption_channels=8,
    )  # fmt: skip
    mask = torch.ones(BATCH, TEXT, dtype=torch.bool)
    mask[1, 3:] = False
    return model, {
        "hidden_states": torch.randn(BATCH, 24, 4), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "timestep": torch.tensor([300, 700]), "encoder_attention_mask": mask, "num_frames": 2, "height": 3,
        "width": 4,
    } | more  # fmt: skip


def ltx_model():
    return _model(rope_interpolation_scale=(0.04, 32, 32))


def ltx_i2v_model():
    timestep = torch.tensor([300.0, 700.0])[:, None].repeat(1, 24)
    timestep[:, :12] = 0  # a frame that is given
    return _model(timestep=timestep, video_coords=torch.rand(BATCH, 3, 24))


BLOCKS = (ltx, ltx_unmasked, ltx_i2v, ltx_affine)
MODELS = (ltx_model, ltx_i2v_model)
