"""PRX: a block with keys and values of a text, with and without a mask; a whole model."""

import torch
from diffusers import PRXTransformer2DModel
from diffusers.models.transformers.transformer_prx import PRXBlock

from .case import BATCH, HEADS, TEXT, Case, D, N, angles, awake, sample


def _case(padding: int) -> Case:
    block = awake(PRXBlock(D, HEADS))
    torch.nn.init.normal_(block.modulation.lin.weight, std=D**-0.5)  # it starts as 0
    cos, sin = (part.view(BATCH, 1, N, -1) for part in angles(BATCH * N, twice=False))
    mask = torch.ones(BATCH, TEXT, dtype=torch.bool)
    mask[1, TEXT - padding :] = False
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "temb": torch.randn(BATCH, D),
        "image_rotary_emb": torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2)),
        "attention_mask": mask if padding else None,
    }

    def alone(b, kept):
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, kept],
            "encoder_hidden_states": sample(inputs["encoder_hidden_states"], b),
            "temb": sample(inputs["temb"], b),
            "image_rotary_emb": inputs["image_rotary_emb"][b : b + 1, :, kept],
            "attention_mask": sample(mask, b),
        }

    return Case(block, inputs, alone, block.down_proj)


def prx():
    return _case(0)


def prx_masked():
    return _case(2)


def prx_model():
    model = PRXTransformer2DModel(
        in_channels=4, patch_size=2, context_in_dim=8, hidden_size=D, num_heads=HEADS, depth=3,
        axes_dim=[8, 8],
    )  # fmt: skip
    mask = torch.ones(BATCH, TEXT, dtype=torch.bool)
    mask[1, -2:] = False
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 12, 12), "timestep": torch.tensor([0.3, 0.7]),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 8), "attention_mask": mask,
    }  # fmt: skip


BLOCKS = (prx, prx_masked)
MODELS = (prx_model,)
