"""Z-Image: blocks of one sequence [image, its padding, text, its padding], of one size and ragged; a whole
model with two sizes and two texts in a batch."""

import torch
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF, ZImageTransformerBlock

from .case import BATCH, HEADS, Case, D, angles, awake, sample

T = {"t": torch.tensor([0.75, 0.25])}
"""The timesteps again, under the name that the model of this family gives them."""


def _case(sizes: list[tuple[int, int]], texts: list[int]) -> Case:
    block = awake(ZImageTransformerBlock(0, D, HEADS, HEADS, 1e-5, True))
    images = [h * w for h, w in sizes]
    lengths = [n + -n % SEQ_MULTI_OF + m + -m % SEQ_MULTI_OF for n, m in zip(images, texts, strict=True)]
    rows = max(lengths)
    valid = torch.arange(rows) < torch.tensor(lengths)[:, None]
    inputs = {
        "x": torch.randn(BATCH, rows, D),
        "attn_mask": None if valid.all() else valid,
        "freqs_cis": torch.complex(*angles(BATCH * rows, twice=False)).view(BATCH, rows, -1),
        "adaln_input": torch.randn(BATCH, min(D, 256)),
    }

    def alone(b, kept):
        places = torch.cat([kept, torch.arange(images[b], rows)])
        return {
            "x": inputs["x"][b : b + 1, places],
            "attn_mask": valid[b : b + 1, places],
            "freqs_cis": inputs["freqs_cis"][b : b + 1, places],
            "adaln_input": sample(inputs["adaln_input"], b),
        }

    told = T | {
        "x": [torch.empty(4, 1, h, w) for h, w in sizes],
        "cap_feats": [torch.empty(m, 8) for m in texts],
        "patch_size": 1,
    }
    return Case(
        block, inputs, alone, block.ffn_norm2, tokens="x", image=lambda b: slice(0, images[b]), told=told,
        valid=valid,
    )  # fmt: skip


def z_image():
    return _case([(3, 4), (3, 4)], [5, 5])


def z_image_ragged():
    return _case([(3, 4), (3, 3)], [5, 33])


def z_image_model():
    model = ZImageTransformer2DModel(
        in_channels=4, dim=D, n_layers=3, n_refiner_layers=1, n_heads=HEADS, n_kv_heads=HEADS, cap_feat_dim=8,
        axes_dims=[8, 4, 4], axes_lens=[256, 64, 64],
    )  # fmt: skip
    return model, {
        "x": [torch.randn(4, 1, 16, 16), torch.randn(4, 1, 12, 24)],
        "cap_feats": [torch.randn(20, 8), torch.randn(40, 8)],
        "t": torch.tensor([0.3, 0.7]),
    }


BLOCKS = (z_image, z_image_ragged)
MODELS = (z_image_model,)
