"""HiDream-I1: joint and single blocks, square images and padded ones of two sizes."""

import torch
from diffusers import HiDreamImageTransformer2DModel
from diffusers.models.transformers.transformer_hidream_image import (
    HiDreamImageSingleTransformerBlock,
    HiDreamImageTransformerBlock,
)

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample

SIZES = ((3, 4), (3, 3))
TOTAL = N + 3


def _rope(rows):
    tables = [angles(rows, twice=False, seed=seed) for seed in range(BATCH)]
    turns = [torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2)) for cos, sin in tables]
    return torch.stack(turns)[:, :, None]


def _case(block, single, padded=False) -> Case:
    sizes = SIZES if padded else SIZES[:1] * BATCH
    counts = [height * width for height, width in sizes]
    image = TOTAL if padded else N
    total = image + TEXT if single else image
    rope = _rope(image + TEXT)
    inputs = {"hidden_states": torch.randn(BATCH, total, D), "temb": torch.randn(BATCH, D)}
    if not single:
        inputs["encoder_hidden_states"] = torch.randn(BATCH, TEXT, D)
    if padded:
        places = torch.arange(total)
        real = (places < torch.tensor(counts)[:, None]) | (places >= image)
        inputs["hidden_states_masks"] = real.float()

    def alone(b, kept):
        rows = torch.cat([kept, torch.arange(counts[b], total)])
        one = {name: sample(value, b) for name, value in inputs.items()}
        for name in one.keys() & {"hidden_states", "hidden_states_masks"}:
            one[name] = one[name][:, rows]
        turned = torch.cat([kept, torch.arange(counts[b], image + TEXT)])
        return one | {"image_rotary_emb": rope[b : b + 1, turned]}

    inputs["image_rotary_emb"] = rope
    told = {"timesteps": torch.tensor([250.0, 750.0])}  # as the model of this family calls them
    told |= {"hidden_states_masks": torch.ones(BATCH, image), "img_sizes": torch.tensor(sizes)}
    case = Case(awake(block), inputs, alone, block.ff_i, image=lambda b: slice(0, counts[b]), told=told)
    if not single:
        case.parts = lambda out: out
    return case


def hidream():
    return _case(HiDreamImageTransformerBlock(D, HEADS, WIDTH), single=False)


def hidream_padded():
    return _case(HiDreamImageTransformerBlock(D, HEADS, WIDTH, 0), single=False, padded=True)


def hidream_single():
    return _case(HiDreamImageSingleTransformerBlock(D, HEADS, WIDTH), single=True)


def hidream_single_padded():
    return _case(HiDreamImageSingleTransformerBlock(D, HEADS, WIDTH, 0), single=True, padded=True)


def _model(height, width):
    model = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=WIDTH, num_attention_heads=HEADS,
        caption_channels=(8, 8), text_emb_dim=6, num_routed_experts=2,
        num_activated_experts=2, axes_dims_rope=(4, 4, 8), max_resolution=(16, 16), llama_layers=(0, 1),
        force_inference_output=True,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, height, width), "timesteps": torch.tensor([300, 700]),
        "encoder_hidden_states_t5": torch.randn(BATCH, 3, 8), "pooled_embeds": torch.randn(BATCH, 6),
        "encoder_hidden_states_llama3": torch.randn(2, BATCH, TEXT, 8),
    }  # fmt: skip


def hidream_model():
    return _model(12, 12)


def hidream_wide_model():
    return _model(8, 12)


hidream_model.graphs = "the host counts the tokens of each expert"
hidream_wide_model.graphs = "the host counts the tokens of each expert"

BLOCKS = (hidream, hidream_padded, hidream_single, hidream_single_padded)
MODELS = (hidream_model, hidream_wide_model)
