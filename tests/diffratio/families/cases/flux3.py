"""FLUX.3: blocks of the image alone and joint blocks, modulation by token; a model with a reference."""

import torch
from diffusers import Flux3Transformer2DModel
from diffusers.models.transformers.transformer_flux3 import (
    Flux3ModeTransformerBlock,
    Flux3SingleTransformerBlock,
)

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample
from .flux import joint_case, tiny_inputs


def flux3_mode():
    block = awake(Flux3ModeTransformerBlock(D, HEADS, WIDTH))
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D), "temb_mod": torch.randn(BATCH, N, 3 * D),
        "image_rotary_emb": angles(N),
    }  # fmt: skip

    def alone(b, kept):
        gathered = {name: inputs[name][b : b + 1, kept] for name in ("hidden_states", "temb_mod")}
        return gathered | {"image_rotary_emb": tuple(table[kept] for table in inputs["image_rotary_emb"])}

    return Case(block, inputs, alone, block.ff)


def flux3_joint():
    block = Flux3SingleTransformerBlock(D, HEADS, WIDTH)
    by_token = {"temb_mod": torch.randn(BATCH, N, 3 * D), "temb_mod_context": torch.randn(BATCH, TEXT, 3 * D)}
    case = joint_case(block, by_token, block.ff)
    gathered = case.alone
    case.alone = lambda b, kept: gathered(b, kept) | {"temb_mod": sample(by_token["temb_mod"], b)[:, kept]}
    case.mlp_start = lambda b: TEXT
    return case


def _model(**options):
    model = Flux3Transformer2DModel(
        in_channels=4, cond_in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=WIDTH,
        num_attention_heads=HEADS, joint_attention_dim=8, timestep_channels=16, axes_dims_rope=(4, 4, 4, 4),
        **options,
    )  # fmt: skip
    inputs = tiny_inputs()
    ids, text = torch.zeros(36, 4), torch.zeros(TEXT, 4)
    ids[:, 1:3], text[:, 3] = inputs["img_ids"][:, 1:], torch.arange(TEXT)
    return model, inputs | {"img_ids": ids, "txt_ids": text}


def flux3_model():
    model, inputs = _model(flow_map=True)
    return model, inputs | {"target_timestep": torch.tensor([0.2, 0.6])}


def flux3_reference_model():
    model, inputs = _model()
    ids = inputs["img_ids"][:16].clone()
    ids[:, 0] = 1
    return model, inputs | {"image_cond_hidden_states": torch.randn(BATCH, 16, 4), "image_cond_ids": ids}


BLOCKS = (flux3_mode, flux3_joint)
MODELS = (flux3_model, flux3_reference_model)
