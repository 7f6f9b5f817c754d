"""ERNIE-Image: a block of one sequence [image, text], which comes as [rows, samples, D]; a whole model."""

import torch
from diffusers import ErnieImageTransformer2DModel
from diffusers.models.transformers.transformer_ernie_image import ErnieImageSharedAdaLNBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, awake


def ernie_image():
    block = awake(ErnieImageSharedAdaLNBlock(D, HEADS, 3 * D))
    valid = torch.ones(BATCH, N + TEXT, dtype=torch.bool)
    valid[1, -2:] = False
    mask = valid[:, None, None]
    modulation = tuple(torch.randn(1, BATCH, D).expand(N + TEXT, -1, -1) for _ in range(6))
    inputs = {
        "x": torch.randn(N + TEXT, BATCH, D),
        "rotary_pos_emb": (torch.rand(BATCH, N + TEXT, 1, WIDTH // 2) * 6).repeat_interleave(2, dim=-1),
        "temb": modulation,
        "attention_mask": mask,
    }

    def alone(b, kept):
        rows = torch.cat([kept, torch.arange(N, N + TEXT)])
        return {
            "x": inputs["x"][rows, b : b + 1],
            "rotary_pos_emb": inputs["rotary_pos_emb"][b : b + 1, rows],
            "temb": tuple(vector[rows, b : b + 1] for vector in modulation),
            "attention_mask": mask[b : b + 1, ..., rows],
        }

    def parts(out):
        return out.transpose(0, 1), None

    told = {"text_bth": torch.empty(BATCH, TEXT, 1)}
    return Case(block, inputs, alone, block.mlp, parts, tokens="x", told=told, valid=valid, rows_first=True)


def ernie_image_model():
    model = ErnieImageTransformer2DModel(
        hidden_size=D, num_attention_heads=HEADS, num_layers=3, ffn_hidden_size=2 * D, in_channels=4,
        out_channels=4, text_in_dim=8, rope_axes_dim=(4, 4, 8),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 6, 6), "timestep": torch.tensor([300.0, 700.0]),
        "text_bth": torch.randn(BATCH, TEXT, 8), "text_lens": torch.tensor([TEXT, TEXT - 2]),
    }  # fmt: skip


BLOCKS = (ernie_image,)
MODELS = (ernie_image_model,)
