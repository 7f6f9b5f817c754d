"""Qwen-Image: with and without a text mask, Edit's references with one and with two modulations."""

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample


def _case(mask: bool = False, references: int = 0, zero_cond_t: bool = False) -> Case:
    block = QwenImageTransformerBlock(D, HEADS, WIDTH, zero_cond_t=zero_cond_t)
    samples, tokens = 2 * BATCH if zero_cond_t else BATCH, N + references
    valid = torch.ones(BATCH, TEXT, dtype=torch.bool)
    valid[0, 1], valid[1, 3:] = False, False
    image, text = (torch.complex(*angles(n, twice=False, seed=n)) for n in (tokens, TEXT))
    inputs = {
        "hidden_states": torch.randn(BATCH, tokens, D),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "encoder_hidden_states_mask": valid if mask else None,
        "temb": torch.randn(samples, D),
        "image_rotary_emb": (image, text),
        "modulate_index": torch.randint(0, 2, (BATCH, tokens), dtype=torch.int32) if zero_cond_t else None,
    }

    def alone(b, kept):
        kept = torch.cat([kept, torch.arange(N, tokens)])
        of_tokens = inputs["modulate_index"]
        return {
            "hidden_states": inputs["hidden_states"][b : b + 1, kept],
            "encoder_hidden_states": sample(inputs["encoder_hidden_states"], b),
            "encoder_hidden_states_mask": sample(valid, b) if mask else None,
            "temb": inputs["temb"][b::BATCH],
            "image_rotary_emb": (image[kept], text),
            "modulate_index": None if of_tokens is None else of_tokens[b : b + 1, kept],
        }

    shapes = [(1, 3, N // 3)] + [(1, 2, references // 2)] * bool(references)
    return Case(awake(block), inputs, alone, block.img_mlp, lambda out: (out[1], out[0]),
                told={"img_shapes": [shapes] * BATCH}, text_valid=valid if mask else None)  # fmt: skip


def qwen_image():
    return _case()


def qwen_image_masked():
    return _case(mask=True)


def qwen_image_edit():
    return _case(mask=True, references=4)


def qwen_image_edit_plus():
    return _case(mask=True, references=4, zero_cond_t=True)


def _model(shapes, **more):
    model = QwenImageTransformer2DModel(
        patch_size=2, in_channels=8, out_channels=2, num_layers=2, attention_head_dim=WIDTH,
        num_attention_heads=HEADS, joint_attention_dim=8, axes_dims_rope=(8, 4, 4), **more,
    )  # fmt: skip
    mask = torch.ones(BATCH, TEXT, dtype=torch.long)
    mask[1, 3:] = 0
    tokens = sum(frames * height * width for frames, height, width in shapes)
    return model, {
        "hidden_states": torch.randn(BATCH, tokens, 8), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "encoder_hidden_states_mask": mask, "timestep": torch.tensor([0.3, 0.7]),
        "img_shapes": [shapes] * BATCH,
    }  # fmt: skip


def qwen_image_model():
    return _model([(1, 6, 6)])


def qwen_image_edit_model():
    return _model([(1, 6, 6), (1, 4, 4), (1, 2, 4)], zero_cond_t=True)


def qwen_image_layered_model():
    model, inputs = _model([(1, 4, 4)] * 3 + [(1, 4, 6)], use_layer3d_rope=True, use_additional_t_cond=True)
    return model, inputs | {"additional_t_cond": torch.tensor([0, 0])}


BLOCKS = (qwen_image, qwen_image_masked, qwen_image_edit, qwen_image_edit_plus)
MODELS = (qwen_image_model, qwen_image_edit_model, qwen_image_layered_model)
