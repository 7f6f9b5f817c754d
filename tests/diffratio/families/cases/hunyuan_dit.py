"""HunyuanDiT: blocks with and without a long skip; a whole model."""

import torch
from diffusers import HunyuanDiT2DModel
from diffusers.models.transformers.hunyuan_transformer_2d import HunyuanDiTBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample


class _Skipping(Case):
    @property
    def samples(self):
        """The long skip comes before the routing."""
        both = torch.cat([self.inputs["hidden_states"], self.inputs["skip"]], dim=-1)
        return self.block.skip_linear(self.block.skip_norm(both))


def _case(skip: bool) -> Case:
    block = awake(HunyuanDiTBlock(D, HEADS, D, activation_fn="gelu-approximate", skip=skip))
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "temb": torch.randn(BATCH, D),
        "image_rotary_emb": angles(N),
        "skip": torch.randn(BATCH, N, D),
    }

    def alone(b, kept):
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, kept],
            "encoder_hidden_states": sample(inputs["encoder_hidden_states"], b),
            "temb": sample(inputs["temb"], b),
            "image_rotary_emb": tuple(table[kept] for table in inputs["image_rotary_emb"]),
            "skip": inputs["skip"][b : b + 1, kept],
        }

    return (_Skipping if skip else Case)(block, inputs, alone, block.ff)


def hunyuan_dit():
    return _case(skip=False)


def hunyuan_dit_skip():
    return _case(skip=True)


def hunyuan_dit_model():
    model = HunyuanDiT2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH, in_channels=4, patch_size=2, sample_size=8,
        hidden_size=D, num_layers=4, cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=8,
        text_len=TEXT, text_len_t5=3, use_style_cond_and_image_meta_size=False,
    )  # fmt: skip
    mask = torch.ones(BATCH, TEXT, dtype=torch.long)
    mask[1, -2:] = 0
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 12, 12), "timestep": torch.tensor([300.0, 700.0]),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 8), "text_embedding_mask": mask,
        "encoder_hidden_states_t5": torch.randn(BATCH, 3, 8),
        "text_embedding_mask_t5": torch.ones(BATCH, 3, dtype=torch.long), "image_rotary_emb": angles(36),
    }  # fmt: skip


BLOCKS = (hunyuan_dit, hunyuan_dit_skip)
MODELS = (hunyuan_dit_model,)
