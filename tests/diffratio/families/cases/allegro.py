"""Allegro: positions along three axes, padded text, and a text mask that is no length. Latte's blocks are
those of PixArt, on frames and then between them."""

import torch
from diffusers import AllegroTransformer3DModel, LatteTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from diffusers.models.transformers.transformer_allegro import AllegroTransformerBlock

from .case import BATCH, HEADS, TEXT, Case, D, N, awake, sample

WIDTH = 24
"""Of a head: three axes."""
WIDE = HEADS * WIDTH
_BIAS = -10000.0 * (torch.arange(TEXT) >= torch.tensor([[TEXT], [3]]))[:, None]


def _rope(frames, height, width):
    *tables, t, h, w = get_3d_rotary_pos_embed_allegro(
        WIDTH, ((0, 0), (height, width)), (height, width), frames
    )
    places = torch.cartesian_prod(*(grid.long() for grid in (t, h, w))).T.reshape(3, 1, -1)
    return tables, list(places)


def _case(bias) -> Case:
    block = AllegroTransformerBlock(
        WIDE, HEADS, WIDTH, cross_attention_dim=WIDE, activation_fn="gelu-approximate", attention_bias=True,
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(BATCH, N, WIDE), "encoder_hidden_states": torch.randn(BATCH, TEXT, WIDE),
        "temb": torch.randn(BATCH, 6 * WIDE), "encoder_attention_mask": bias,
    }  # fmt: skip
    tables, places = _rope(3, 2, 2)

    def alone(b, kept):
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        one["hidden_states"] = one["hidden_states"][:, kept]
        return one | {"image_rotary_emb": (tables, [place[:, kept] for place in places])}

    inputs["image_rotary_emb"] = tables, places
    return Case(awake(block), inputs, alone, block.ff)


def allegro():
    return _case(None)


def allegro_padded():
    return _case(_BIAS)


def allegro_biased():
    return _case(torch.randn(BATCH, 1, TEXT))


def allegro_model():
    model = AllegroTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH, num_layers=2, cross_attention_dim=WIDE,
        sample_height=8, sample_width=8, sample_frames=4, caption_channels=8,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 2, 8, 8), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "encoder_attention_mask": _BIAS[:, 0] == 0, "timestep": torch.tensor([300, 700]),
        "image_rotary_emb": _rope(2, 4, 4),
    }  # fmt: skip


def latte_model():
    model = LatteTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=D, attention_bias=True, sample_size=8, patch_size=2, caption_channels=8,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, video_length=4,
        activation_fn="gelu-approximate",
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 4, 8, 8), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "timestep": torch.tensor([300, 700]),
    }  # fmt: skip


BLOCKS = (allegro, allegro_padded, allegro_biased)
MODELS = (allegro_model, latte_model)
