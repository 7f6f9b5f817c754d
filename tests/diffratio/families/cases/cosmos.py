"""Cosmos: one timestep a sample or a frame, masked text, text and image."""

import torch
from diffusers import CosmosTransformer3DModel
from diffusers.models.transformers.transformer_cosmos import CosmosTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample

TEXT_WIDTH = 24


def _case(of_frames=False, masked=False, with_image=False) -> Case:
    text_width = D if with_image else TEXT_WIDTH
    block = CosmosTransformerBlock(HEADS, WIDTH, text_width, adaln_lora_dim=8, img_context=with_image)
    tokens = (N,) if of_frames else ()
    text = torch.randn(BATCH, TEXT, text_width)
    rope = tuple(torch.cat([table, table], dim=1) for table in angles(N, twice=False))
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D), "encoder_hidden_states": text,
        "embedded_timestep": torch.randn(BATCH, *tokens, D), "temb": torch.randn(BATCH, *tokens, 3 * D),
        "image_rotary_emb": rope,
    }  # fmt: skip
    image = torch.randn(BATCH, 4, D)
    if masked:
        valid = torch.arange(TEXT) < torch.tensor([[TEXT], [3]])
        inputs["attention_mask"] = valid[:, None, None]
    if with_image:
        inputs["encoder_hidden_states"] = text, image

    def alone(b, kept):
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        for name in ("hidden_states", "embedded_timestep", "temb"):
            one[name] = one[name][:, kept] if one[name].dim() == 3 else one[name]
        if with_image:
            one["encoder_hidden_states"] = sample(text, b), sample(image, b)
        return one | {"image_rotary_emb": tuple(table[kept] for table in rope)}

    return Case(awake(block), inputs, alone, block.ff)


def cosmos():
    return _case()


def cosmos_masked():
    return _case(masked=True)


def cosmos_frames():
    return _case(of_frames=True)


def cosmos_image():
    return _case(with_image=True)


def cosmos_model():
    model = CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=HEADS, attention_head_dim=WIDTH, num_layers=2,
        mlp_ratio=2, text_embed_dim=8, adaln_lora_dim=8, max_size=(4, 16, 16), concat_padding_mask=False,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 2, 8, 8), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "timestep": torch.tensor([0.3, 0.7]),
    }  # fmt: skip


BLOCKS = (cosmos, cosmos_masked, cosmos_frames, cosmos_image)
MODELS = (cosmos_model,)
