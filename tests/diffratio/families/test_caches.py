"""Caches of keys that a first call fills and later calls read (GLM-Image, Qwen-Image 2.1): with every token
kept the routed model gives what the model gives, and the caches are the same."""

import pytest
import torch
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

from diffratio import DiffRatioConfig, apply_diffratio

from .test_models import made, without_scores


def qwenimage21(model, inputs):
    cache = QwenImage21KVCache(2)
    modes = ("extract", "cached")
    outs = [model(**inputs, kv_cache=cache, kv_cache_mode=mode, return_dict=False)[0] for mode in modes]
    return [*outs, *(t for layer in cache.layer_caches for t in (layer.k, layer.v))]


def glm_image(model, inputs):
    cache = GlmImageKVCache(2)
    outs = []
    for mode in ("write", "read", "skip"):
        cache.set_mode(mode)
        outs.append(model(**inputs, kv_caches=cache, return_dict=False)[0])
    return [*outs, *(t for layer in cache.caches for t in (*layer.k_caches, *layer.v_caches))]


@pytest.mark.parametrize("run", (qwenimage21, glm_image))
def test_a_cache_is_filled_and_read(run):
    model, inputs = made(run.__name__)
    with torch.no_grad():
        wanted = run(model, inputs)
        apply_diffratio(model, DiffRatioConfig(compression=0.0))
        without_scores(model)
        got = run(model, inputs)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=5e-6, rtol=5e-5)


@pytest.mark.filterwarnings("ignore:the routers are untrained")
def test_the_call_that_fills_a_cache_is_dense():
    model, inputs = made("glm_image")
    with torch.no_grad():
        wanted = glm_image(model, inputs)
        apply_diffratio(model, DiffRatioConfig(compression=0.5))
        got = glm_image(model, inputs)
    assert torch.equal(got[0], wanted[0])
    assert not torch.allclose(got[1], wanted[1], atol=1e-4)
