"""ControlNet: residuals that a transformer is given, and ControlNets whose own blocks are routed."""

import copy

import pytest
import torch
from diffusers import FluxControlNetModel, QwenImageControlNetModel, SD3ControlNetModel

from diffratio import DiffRatioConfig, apply_diffratio, summary

from .cases.case import BATCH, HEADS, WIDTH, D, awake
from .cases.flux import tiny_inputs, tiny_options
from .test_compositions import HALF, routed, twins
from .test_models import made, run, without_scores

pytestmark = pytest.mark.filterwarnings("ignore:the routers are untrained")


def of_image(count=1):
    return [torch.randn(BATCH, 36, D) for _ in range(count)]


RESIDUALS = {
    "flux": lambda: {
        "controlnet_block_samples": of_image(),
        "controlnet_single_block_samples": of_image(2),
    },
    "chroma": lambda: {
        "controlnet_block_samples": of_image(2),
        "controlnet_single_block_samples": of_image(),
    },
    "qwen_image": lambda: {"controlnet_block_samples": of_image()},
    "sd35": lambda: {"block_controlnet_hidden_states": [torch.randn(BATCH, 36, D)]},
    "z_image": lambda: {"controlnet_block_samples": {0: torch.randn(D), 2: torch.randn(D)}},
    "hunyuan_dit": lambda: {"controlnet_block_samples": [torch.randn(D)]},
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals_are_added_to_every_token(name):
    dense, kept, inputs = twins(name)
    half, _ = routed(name)
    with torch.no_grad():
        without, without_half = run(dense, inputs), run(half, inputs)
        more = RESIDUALS[name]()
        wanted = run(dense, inputs | copy.deepcopy(more))
        torch.testing.assert_close(run(kept, inputs | copy.deepcopy(more)), wanted, atol=1e-5, rtol=5e-5)
        moved = run(half, inputs | more) - without_half
    assert not torch.allclose(wanted, without, atol=1e-2)
    assert (moved.flatten() != 0).float().mean() > 0.9  # tokens that no block kept too


def flux_controlnet():
    model = FluxControlNetModel(pooled_projection_dim=6, **tiny_options())
    more = {"pooled_projections": torch.randn(BATCH, 6), "controlnet_cond": torch.randn(BATCH, 36, 4)}
    return model, tiny_inputs() | more


def qwen_image_controlnet():
    _, inputs = made("qwen_image")
    channels = inputs["hidden_states"].shape[-1]
    model = QwenImageControlNetModel(
        patch_size=1, in_channels=channels, out_channels=channels, num_layers=2, attention_head_dim=WIDTH,
        num_attention_heads=HEADS, joint_attention_dim=inputs["encoder_hidden_states"].shape[-1],
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return model, inputs | {"controlnet_cond": torch.randn_like(inputs["hidden_states"])}


def sd3_controlnet(**options):
    model = SD3ControlNetModel(
        sample_size=12, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=WIDTH,
        num_attention_heads=HEADS, joint_attention_dim=8, caption_projection_dim=D, pooled_projection_dim=6,
        pos_embed_max_size=12, **options,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 12, 12), "controlnet_cond": torch.randn(BATCH, 4, 12, 12),
        "encoder_hidden_states": torch.randn(BATCH, 5, 8), "pooled_projections": torch.randn(BATCH, 6),
        "timestep": torch.tensor([300.0, 700.0]),
    }  # fmt: skip


@pytest.mark.parametrize("make", [flux_controlnet, qwen_image_controlnet, sd3_controlnet])
def test_a_controlnet_is_routed(make):
    torch.manual_seed(0)
    model, inputs = make()
    awake(model)
    with torch.no_grad():
        wanted = residuals(model, inputs)
        assert any(one.abs().max() > 0.1 for one in wanted)
        apply_diffratio(model, DiffRatioConfig(compression=0.0))
        without_scores(model)
        for got, one in zip(residuals(model, inputs), wanted, strict=True):
            torch.testing.assert_close(got, one, atol=1e-5, rtol=5e-5)
        apply_diffratio(model, HALF)
        assert not torch.allclose(residuals(model, inputs)[-1], wanted[-1], atol=1e-3)
    assert all(row.kept_tokens == (18,) and row.reason is None for row in summary(model))


def residuals(model, inputs) -> list[torch.Tensor]:
    found = model(**inputs, return_dict=False)
    return [one for part in found if part is not None for one in ([part] if torch.is_tensor(part) else part)]
