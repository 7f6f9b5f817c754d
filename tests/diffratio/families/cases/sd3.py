"""SD3 and SD3.5: joint blocks, the last one, dual attention, the ControlNet's single block."""

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.transformers.transformer_sd3 import SD3SingleTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, awake, sample
from .flux import text_image


def _case(block, text: bool = True) -> Case:
    same = {"temb": torch.randn(BATCH, D)}
    same |= {"encoder_hidden_states": torch.randn(BATCH, TEXT, D)} if text else {}
    inputs = same | {"hidden_states": torch.randn(BATCH, N, D)}

    def alone(b, kept):
        gathered = {"hidden_states": inputs["hidden_states"][b : b + 1, kept]}
        return {name: sample(value, b) for name, value in same.items()} | gathered

    case = Case(awake(block), inputs, alone, block.ff)
    case.parts = text_image if text else case.parts
    return case


def sd3_joint():
    return _case(JointTransformerBlock(D, HEADS, WIDTH))


def sd3_last():
    return _case(JointTransformerBlock(D, HEADS, WIDTH, context_pre_only=True))


def sd35_dual():
    return _case(JointTransformerBlock(D, HEADS, WIDTH, qk_norm="rms_norm", use_dual_attention=True))


def sd3_single():
    return _case(SD3SingleTransformerBlock(D, HEADS, WIDTH), text=False)


def sd35_model():
    model = SD3Transformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH, num_layers=3, patch_size=2, sample_size=24,
        pos_embed_max_size=24, in_channels=4, out_channels=4, caption_projection_dim=D, joint_attention_dim=8,
        pooled_projection_dim=6, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 12, 12), "pooled_projections": torch.randn(BATCH, 6),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 8), "timestep": torch.tensor([300.0, 700.0]),
    }  # fmt: skip


BLOCKS = (sd3_joint, sd3_last, sd35_dual, sd3_single)
MODELS = (sd35_model,)
