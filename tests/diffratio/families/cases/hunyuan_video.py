"""HunyuanVideo (text to video, first frame replaced), FramePack, HunyuanVideo 1.5, HunyuanImage."""

import torch
from diffusers import (
    HunyuanImageTransformer2DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
)
from diffusers.models.transformers import transformer_hunyuan_video as hunyuan
from diffusers.models.transformers import transformer_hunyuan_video15 as hunyuan15
from diffusers.models.transformers import transformer_hunyuanimage as image

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample

FRAME = 3
"""Tokens of the first frame, where it is replaced."""


def _both(out):
    return out


def _text_mask() -> torch.Tensor:
    mask = torch.ones(BATCH, TEXT, dtype=torch.bool)
    mask[1, 3:] = False
    return mask


def _case(block, mlp, rope: str = "freqs_cis", of_text_alone: bool = False, first: int = 0) -> Case:
    text, vectors = _text_mask(), {"temb": torch.randn(BATCH, D)}
    if first:
        vectors["token_replace_emb"] = torch.randn(BATCH, D)

    def mask(b, images):
        if of_text_alone:
            return text[b].long()
        return torch.cat([text.new_ones(len(text[b]), images), text[b]], dim=1)[:, None, None]

    inputs = vectors | {
        "hidden_states": torch.randn(BATCH, N, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "attention_mask": mask(slice(None), N),
        rope: angles(N),
    } | ({"num_tokens": first} if first else {})  # fmt: skip

    def alone(b, kept):
        kept = torch.cat([torch.arange(first), first + kept])
        return {name: sample(value, b) for name, value in vectors.items()} | {
            "hidden_states": inputs["hidden_states"][b : b + 1, kept],
            "encoder_hidden_states": sample(inputs["encoder_hidden_states"], b),
            "attention_mask": mask(slice(b, b + 1), len(kept)),
            rope: tuple(table[kept] for table in inputs[rope]),
        } | ({"num_tokens": first} if first else {})  # fmt: skip

    case = Case(awake(block), inputs, alone, mlp, _both, text_valid=text)
    case.image, case.mlp_start = lambda b: slice(first, N), lambda b: first
    return case


def hunyuan_double():
    block = hunyuan.HunyuanVideoTransformerBlock(HEADS, WIDTH, 4.0)
    return _case(block, block.ff)


def hunyuan_single():
    block = hunyuan.HunyuanVideoSingleTransformerBlock(HEADS, WIDTH)
    return _case(block, block.act_mlp, "image_rotary_emb")


def hunyuan_replace():
    block = hunyuan.HunyuanVideoTokenReplaceTransformerBlock(HEADS, WIDTH, 4.0)
    return _case(block, block.ff, first=FRAME)


def hunyuan_replace_single():
    block = hunyuan.HunyuanVideoTokenReplaceSingleTransformerBlock(HEADS, WIDTH)
    return _case(block, block.act_mlp, "image_rotary_emb", first=FRAME)


def hunyuan15_joint():
    block = hunyuan15.HunyuanVideo15TransformerBlock(HEADS, WIDTH, 4.0)
    return _case(block, block.ff, of_text_alone=True)


def hunyuan_image_double():
    block = image.HunyuanImageTransformerBlock(HEADS, WIDTH, 4.0)
    return _case(block, block.ff, "image_rotary_emb")


def hunyuan_image_single():
    block = image.HunyuanImageSingleTransformerBlock(HEADS, WIDTH)
    return _case(block, block.act_mlp, "image_rotary_emb")


def _options(**more) -> dict:
    return {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": HEADS, "attention_head_dim": WIDTH,
        "num_layers": 2, "num_refiner_layers": 1, "text_embed_dim": 8,
    } | more  # fmt: skip


def _inputs(*sizes) -> dict:
    return {
        "hidden_states": torch.randn(BATCH, 4, *sizes), "timestep": torch.tensor([300.0, 700.0]),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 8), "encoder_attention_mask": _text_mask().long(),
    }  # fmt: skip


def _video(cls, **more):
    model = cls(**_options(
        num_single_layers=2, patch_size=2, patch_size_t=1, pooled_projection_dim=6, rope_axes_dim=(4, 6, 6),
        **more,
    ))  # fmt: skip
    guided = {"guidance": torch.tensor([6000.0, 5000.0])} if model.config.guidance_embeds else {}
    return model, _inputs(3, 8, 8) | {"pooled_projections": torch.randn(BATCH, 6)} | guided


def hunyuan_video_model():
    return _video(HunyuanVideoTransformer3DModel)


def hunyuan_replace_model():
    return _video(HunyuanVideoTransformer3DModel, image_condition_type="token_replace", guidance_embeds=False)


def framepack_model():
    model, inputs = _video(
        HunyuanVideoFramepackTransformer3DModel,
        has_image_proj=True,
        image_proj_dim=6,
        has_clean_x_embedder=True,
    )
    frames = {"latents_clean": 2, "latents_history_2x": 2, "latents_history_4x": 4}
    for name, count in frames.items():
        inputs[name] = torch.randn(BATCH, 4, count, 8, 8)
        inputs[f"indices_{name}"] = torch.arange(count)
    inputs["indices_latents"] = torch.arange(8, 11)
    return model, inputs | {"image_embeds": torch.randn(BATCH, 3, 6)}


def hunyuan_video15_model():
    model = HunyuanVideo15Transformer3DModel(**_options(
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_2_dim=6, image_embed_dim=6,
        rope_axes_dim=(4, 6, 6), target_size=16, task_type="t2v",
    ))  # fmt: skip
    return model, _inputs(2, 4, 4) | {
        "encoder_hidden_states_2": torch.randn(BATCH, 4, 6), "image_embeds": torch.zeros(BATCH, 3, 6),
        "encoder_attention_mask_2": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
    }  # fmt: skip


def hunyuan_image_model():
    model = HunyuanImageTransformer2DModel(**_options(
        num_single_layers=2, patch_size=(1, 1), text_embed_2_dim=6, rope_axes_dim=(8, 8),
    ))  # fmt: skip
    return model, _inputs(6, 6) | {
        "encoder_hidden_states_2": torch.randn(BATCH, 4, 6),
        "encoder_attention_mask_2": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
    }  # fmt: skip


hunyuan_image_model.checkpointing = "diffusers' model gives checkpointing arguments by name, which it refuses"

framepack_model.graphs = "its model slices the text by the lengths that a mask holds"
hunyuan_video15_model.graphs = "its model sorts the text by its masks"
hunyuan_image_model.graphs = "its model sorts two texts by their masks"

BLOCKS = (
    hunyuan_double, hunyuan_single, hunyuan_replace, hunyuan_replace_single, hunyuan15_joint,
    hunyuan_image_double, hunyuan_image_single,
)  # fmt: skip
MODELS = (
    hunyuan_video_model, hunyuan_replace_model, framepack_model, hunyuan_video15_model, hunyuan_image_model,
)  # fmt: skip
