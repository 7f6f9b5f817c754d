"""EasyAnimate: blocks with layers of their own for the text, with shared ones, and with a norm behind the
MLP."""

import torch
from diffusers import EasyAnimateTransformer3DModel
from diffusers.models.transformers.transformer_easyanimate import EasyAnimateTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, FirstOfTwo, N, angles, awake, sample

EMBEDDING = 24


def _case(own=True, **options) -> Case:
    block = awake(EasyAnimateTransformerBlock(D, HEADS, WIDTH, EMBEDDING, is_mmdit_block=own, **options))
    rope = angles(N)
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D), "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "temb": torch.randn(BATCH, EMBEDDING), "image_rotary_emb": rope,
    }  # fmt: skip

    def alone(b, kept):
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        one["hidden_states"] = one["hidden_states"][:, kept]
        return one | {"image_rotary_emb": tuple(table[kept] for table in rope)}

    mlp = block.ff if block.norm3 is None else block.norm3
    shared = block.norm3 is not None or not own
    return Case(block, inputs, alone, FirstOfTwo(mlp) if shared else mlp, lambda out: out)


def easyanimate():
    return _case()


def easyanimate_shared():
    return _case(own=False)


def easyanimate_norm():
    return _case(after_norm=True)


def easyanimate_model():
    model = EasyAnimateTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH, in_channels=4, out_channels=4, num_layers=2,
        mmdit_layers=1, time_embed_dim=8, text_embed_dim=8, patch_size=2,
        add_norm_text_encoder=True,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 2, 8, 8), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "timestep": torch.tensor([300.0, 700.0]),
    }  # fmt: skip


BLOCKS = (easyanimate, easyanimate_shared, easyanimate_norm)
MODELS = (easyanimate_model,)
