"""FLUX.1: double and single blocks, a whole model, and one with Kontext's reference tokens."""

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample


def _text_image(out):
    return out[1], out[0]


def joint_case(block, modulation: dict[str, torch.Tensor], mlp, references: int = 0) -> Case:
    """Of a block that takes image, text, one rope table [text, image] and modulation tensors."""
    inputs = {
        "hidden_states": torch.randn(BATCH, N + references, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "image_rotary_emb": angles(TEXT + N + references),
    } | modulation

    def alone(b, kept):
        kept = torch.cat([kept, torch.arange(N, N + references)])
        rows = torch.cat([torch.arange(TEXT), TEXT + kept])
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, kept],
            "encoder_hidden_states": sample(inputs["encoder_hidden_states"], b),
            "image_rotary_emb": tuple(table[rows] for table in inputs["image_rotary_emb"]),
        } | {name: sample(value, b) for name, value in modulation.items()}

    ids = torch.zeros(N + references, 3)
    ids[N:, 0] = 1
    return Case(awake(block), inputs, alone, mlp, _text_image, told={"img_ids": ids})


def flux_double():
    block = FluxTransformerBlock(D, HEADS, WIDTH)
    return joint_case(block, {"temb": torch.randn(BATCH, D)}, block.ff)


def flux_kontext():
    block = FluxTransformerBlock(D, HEADS, WIDTH)
    return joint_case(block, {"temb": torch.randn(BATCH, D)}, block.ff, references=4)


def flux_single():
    block = FluxSingleTransformerBlock(D, HEADS, WIDTH)
    case = joint_case(block, {"temb": torch.randn(BATCH, D)}, block.act_mlp)
    case.mlp_start = lambda b: TEXT
    return case


def flux_kontext_single():
    block = FluxSingleTransformerBlock(D, HEADS, WIDTH)
    case = joint_case(block, {"temb": torch.randn(BATCH, D)}, block.act_mlp, references=4)
    case.mlp_start = lambda b: TEXT
    return case


def flux_model():
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=WIDTH,
        num_attention_heads=HEADS, joint_attention_dim=8, pooled_projection_dim=6, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )  # fmt: skip
    ids = torch.zeros(36, 3)
    ids[:, 1], ids[:, 2] = torch.arange(36) // 6, torch.arange(36) % 6
    return model, {
        "hidden_states": torch.randn(BATCH, 36, 4), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "pooled_projections": torch.randn(BATCH, 6), "timestep": torch.tensor([0.3, 0.7]), "img_ids": ids,
        "txt_ids": torch.zeros(TEXT, 3), "guidance": torch.tensor([3.5, 4.0]),
    }  # fmt: skip


BLOCKS = (flux_double, flux_kontext, flux_single, flux_kontext_single)
MODELS = (flux_model,)
