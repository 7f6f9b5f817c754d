"""Nucleus-Image: blocks with one MLP and with experts, padded text."""

import torch
from diffusers import NucleusMoEImageTransformer2DModel
from diffusers.models.transformers.transformer_nucleusmoe_image import NucleusMoEImageTransformerBlock

from .case import BATCH, TEXT, Case, N, angles, awake, sample

HEADS, KEYS, WIDTH = 4, 2, 8
D = HEADS * WIDTH
TEXT_WIDTH = 24
_VALID = torch.arange(TEXT) < torch.tensor([[TEXT], [3]])


def _turns(rows, seed):
    return torch.complex(*angles(rows, WIDTH, twice=False, seed=seed))


def _case(experts, padded) -> Case:
    block = NucleusMoEImageTransformerBlock(
        D, HEADS, WIDTH, KEYS, joint_attention_dim=TEXT_WIDTH, mlp_ratio=8, moe_enabled=experts,
        num_experts=2, moe_intermediate_dim=24, capacity_factor=1.5, route_scale=1.0,
    )  # fmt: skip
    if experts:
        for parameter in block.img_mlp.experts.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, TEXT_WIDTH),
        "temb": torch.randn(BATCH, D), "image_rotary_emb": (_turns(N, 0), _turns(TEXT, 1)),
    }  # fmt: skip

    def mask(b, kept):
        valid = torch.cat([torch.ones(len(b), kept, dtype=torch.bool), _VALID[b]], dim=1)
        return {"attention_kwargs": {"attention_mask": valid} if padded else None}

    def alone(b, kept):
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        one["hidden_states"] = one["hidden_states"][:, kept]
        image, text = inputs["image_rotary_emb"]
        return one | {"image_rotary_emb": (image[kept], text)} | mask([b], len(kept))

    return Case(awake(block), inputs | mask([0, 1], N), alone, block.img_mlp)


def nucleus():
    return _case(experts=False, padded=True)


def nucleus_experts():
    return _case(experts=True, padded=False)


def nucleus_model():
    model = NucleusMoEImageTransformer2DModel(
        in_channels=4, out_channels=1, num_layers=2, attention_head_dim=WIDTH, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, joint_attention_dim=8, axes_dims_rope=(4, 2, 2), num_experts=2,
        mlp_ratio=8, moe_intermediate_dim=24, capacity_factors=1.5,
        dense_moe_strategy="leave_first_block_dense",
    )  # fmt: skip
    for block in model.transformer_blocks:
        for name, parameter in block.img_mlp.named_parameters():
            if "experts" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model, {
        "hidden_states": torch.randn(BATCH, 36, 4), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "encoder_hidden_states_mask": _VALID, "timestep": torch.tensor([0.3, 0.7]),
        "img_shapes": [(1, 6, 6)] * BATCH,
    }  # fmt: skip


nucleus_model.graphs = "the host counts the tokens of each expert"

BLOCKS = (nucleus, nucleus_experts)
MODELS = (nucleus_model,)
