"""CogView3-Plus, CogView4 and GLM-Image, with and without a cache of reference keys."""

import torch
from diffusers import CogView3PlusTransformer2DModel, CogView4Transformer2DModel, GlmImageTransformer2DModel
from diffusers.models.transformers.transformer_cogview3plus import CogView3PlusTransformerBlock
from diffusers.models.transformers.transformer_cogview4 import CogView4TransformerBlock
from diffusers.models.transformers.transformer_glm_image import GlmImageLayerKVCache, GlmImageTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, FirstOfTwo, N, angles, awake, sample

EMBEDDING = 24


def _case(block, emb: str, mlp, rope=None, cache=None) -> Case:
    inputs = {
        "hidden_states": torch.randn(BATCH, N, D), "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        emb: torch.randn(BATCH, EMBEDDING),
    }  # fmt: skip

    def alone(b, kept):
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        one["hidden_states"] = one["hidden_states"][:, kept]
        if rope is not None:
            one["image_rotary_emb"] = tuple(table[kept] for table in rope)
        return one if cache is None else one | {"kv_cache": _cache(cache.k_caches[b : b + 1])}

    if rope is not None:
        inputs["image_rotary_emb"] = rope
    if cache is not None:
        inputs["kv_cache"] = cache
    return Case(awake(block), inputs, alone, mlp)


def _halves():
    """Every angle twice, in both halves."""
    return tuple(torch.cat([table, table], dim=1) for table in angles(N, twice=False))


class _Cache(GlmImageLayerKVCache):
    def get(self, k, v):
        return tuple(value.to(k.dtype) for value in super().get(k, v))


def _cache(keys):
    cache = _Cache()
    cache.mode = "read"
    cache.k_caches = keys
    cache.v_caches = [key.flip(1) for key in keys]
    return cache


def cogview3plus():
    block = CogView3PlusTransformerBlock(D, HEADS, WIDTH, EMBEDDING)
    case = _case(block, "emb", block.ff)
    case.parts, case.mlp_start = (lambda out: out), lambda b: TEXT
    return case


def cogview4():
    block = CogView4TransformerBlock(D, HEADS, WIDTH, EMBEDDING)
    case = _case(block, "temb", FirstOfTwo(block.ff), _halves())
    case.parts = lambda out: out
    return case


def glm_image():
    block = GlmImageTransformerBlock(D, HEADS, WIDTH, EMBEDDING)
    case = _case(block, "temb", FirstOfTwo(block.ff), _halves())
    case.parts = lambda out: out
    return case


def glm_image_references():
    block = GlmImageTransformerBlock(D, HEADS, WIDTH, EMBEDDING)
    cache = _cache([torch.randn(1, 7, HEADS, WIDTH) for _ in range(BATCH)])
    case = _case(block, "temb", FirstOfTwo(block.ff), _halves(), cache)
    case.parts = lambda out: out
    return case


_SIZES = {"original_size": (96.0, 96.0), "target_size": (96.0, 96.0), "crop_coords": (0.0, 0.0)}


def _inputs(*names):
    sizes = {name: torch.tensor([_SIZES[name]] * BATCH) for name in names}
    return sizes | {
        "hidden_states": torch.randn(BATCH, 4, 12, 12), "encoder_hidden_states": torch.randn(BATCH, TEXT, 8),
        "timestep": torch.tensor([300, 700]),
    }  # fmt: skip


def cogview3plus_model():
    model = CogView3PlusTransformer2DModel(
        in_channels=4, num_layers=2, attention_head_dim=WIDTH, num_attention_heads=HEADS, out_channels=4,
        text_embed_dim=8, time_embed_dim=EMBEDDING, condition_dim=6, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    return model, _inputs(*_SIZES)


def cogview4_model():
    model = CogView4Transformer2DModel(
        in_channels=4, num_layers=2, attention_head_dim=WIDTH, num_attention_heads=HEADS, out_channels=4,
        text_embed_dim=8, time_embed_dim=EMBEDDING, condition_dim=6, rope_axes_dim=(8, 8), sample_size=8,
    )  # fmt: skip
    return model, _inputs(*_SIZES)


def glm_image_model():
    model = GlmImageTransformer2DModel(
        in_channels=4, num_layers=2, attention_head_dim=WIDTH, num_attention_heads=HEADS, out_channels=4,
        text_embed_dim=8, time_embed_dim=EMBEDDING, condition_dim=6, prior_vq_quantizer_codebook_size=9,
    )  # fmt: skip
    return model, _inputs("target_size", "crop_coords") | {
        "prior_token_id": torch.randint(0, 9, (BATCH, 36)),
        "prior_token_drop": torch.zeros(BATCH, 36, dtype=torch.bool),
    }


glm_image_model.graphs = "its model drops the prior of samples by a mask"

BLOCKS = (cogview3plus, cogview4, glm_image, glm_image_references)
MODELS = (cogview3plus_model, cogview4_model, glm_image_model)
