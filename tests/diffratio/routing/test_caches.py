"""Caches and hooks of diffusers that reuse what an earlier step computed, and chunked feed-forwards."""

import copy

import diffusers.hooks as hooks
import pytest
import torch
from diffusers import CacheMixin
from diffusers.hooks import HookRegistry

from diffratio import DiffRatioConfig, apply_diffratio, summary


def pyramid(model):
    hooks.apply_pyramid_attention_broadcast(
        model,
        hooks.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, cross_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(50, 950), cross_attention_timestep_skip_range=(50, 950),
            current_timestep_callback=lambda: 500,
        ),
    )  # fmt: skip


def faster(model):
    hooks.apply_faster_cache(
        model,
        hooks.FasterCacheConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 901),
            current_timestep_callback=lambda: 500, is_guidance_distilled=True,
            unconditional_batch_skip_range=5, unconditional_batch_timestep_skip_range=(-1, 901),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("cache", [pyramid, faster])
def test_a_cache_of_other_tokens_is_refused_before_and_after_apply(tiny, cache):
    model = tiny.pixart()
    cached = copy.deepcopy(model)
    cache(cached)
    with pytest.raises(ValueError, match="(pyramid_attention|faster_cache).*other tokens"):
        apply_diffratio(cached, DiffRatioConfig(0.3))
    assert not any("diffratio" in name for name, _ in cached.named_parameters())
    tiny.route(model)
    tiny.run(model, tiny.inputs(model))
    cache(model)
    for grad in (False, True):
        with pytest.raises(ValueError, match="(pyramid_attention|faster_cache).*other tokens"):
            tiny.run(model, tiny.inputs(model), grad)
    assert "other tokens" in summary(model)[0].reason


@pytest.mark.parametrize("name", ["faster_cache_denoiser", "pyramid_attention_broadcast"])
def test_a_cache_on_any_depth_is_found(tiny, name):
    model = tiny.route(tiny.pixart())
    tiny.run(model, tiny.inputs(model))
    HookRegistry.check_if_exists_or_initialize(model.transformer_blocks[1].ff.net[0].proj).register_hook(
        hooks.ModelHook(), name
    )
    if name == "pyramid_attention_broadcast":
        with pytest.raises(ValueError, match="ff.net.0.proj carries"):
            tiny.run(model, tiny.inputs(model))
    else:
        tiny.run(model, tiny.inputs(model))


def first_block(model):
    hooks.apply_first_block_cache(model, hooks.FirstBlockCacheConfig(threshold=0.2))


def mag(model):
    ratios = {"mag_ratios": [1.0] * 4, "num_inference_steps": 4, "threshold": 0.5, "retention_ratio": 0.25}
    hooks.apply_mag_cache(model, hooks.MagCacheConfig(**ratios))


def layer_skip(model):
    hooks.apply_layer_skip(model, hooks.LayerSkipConfig(indices=[1], fqn="transformer_blocks"))


CACHES = [first_block, mag, layer_skip]


def sample(tiny, model):
    """Four steps that hardly differ, so that a cache has something to reuse."""
    outputs, inputs = [], tiny.inputs(model)
    for step in range(4):
        with CacheMixin.cache_context(model, "cond"):  # which PixArt does not inherit
            outputs.append(tiny.run(model, inputs | {"timestep": torch.full((2,), 900 - step)}))
    return torch.stack(outputs)


@pytest.mark.parametrize("cache", CACHES)
def test_caches_of_whole_blocks_work_on_a_routed_model(tiny, cache):
    dense = tiny.pixart()
    model = apply_diffratio(copy.deepcopy(dense), DiffRatioConfig(0.0, rescale="none"))
    plain = sample(tiny, copy.deepcopy(dense))
    cache(dense), cache(model)
    expected, output = sample(tiny, dense), sample(tiny, model)
    assert not torch.equal(expected, plain)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", CACHES)
def test_caches_of_whole_blocks_work_where_tokens_are_skipped(tiny, cache):
    model = tiny.route(tiny.pixart(), 0.5, num_regions=2, overrides={0: [0.1, 0.6]})
    cache(model)
    assert sample(tiny, model).isfinite().all()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("size", [1, 7, 16, 64, 1000])
@pytest.mark.parametrize("after", [False, True])
def test_chunked_feed_forwards_take_any_kept_count(tiny, model, size, after, grad):
    expected = copy.deepcopy(model)

    def chunk(model):
        for block in model.transformer_blocks:
            block.set_chunk_feed_forward(size, 1)

    config = dict(num_regions=2, overrides={0: [0.3, 0.7], 1: 0.9, 2: 0.0})
    if not after:
        chunk(model)
    tiny.route(model, 0.3, **config), tiny.route(expected, 0.3, **config)
    if after:
        tiny.run(model, tiny.inputs(model), grad)
        chunk(model)
    for timestep in (100, [100, 900]):
        inputs = tiny.inputs(model, timestep)
        torch.testing.assert_close(
            tiny.run(model, inputs, grad), tiny.run(expected, inputs, grad), rtol=0, atol=1e-5
        )
