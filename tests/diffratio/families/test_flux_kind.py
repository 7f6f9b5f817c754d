"""What families after FLUX.1, SD3 and HunyuanVideo refuse, keep always and leave dense."""

import pytest
import torch
from diffusers import Flux3Transformer2DModel
from diffusers.models.attention_processor import FusedJointAttnProcessor2_0
from diffusers.models.transformers import transformer_flux2 as flux2
from torch import nn

from diffratio import DiffRatioConfig, apply_diffratio, summary

from .cases.case import HEADS, WIDTH, D, Holder, angles
from .test_models import made, run

HALF = DiffRatioConfig(compression=0.5)
pytestmark = pytest.mark.filterwarnings("ignore:the routers are untrained")


class OwnForward(Flux3Transformer2DModel):
    """Whose forward may give each token a modulation."""

    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states, *args, **kwargs)


@pytest.mark.parametrize("name", ["chroma_masked", "bria_fibo"])
def test_a_mask_that_is_added_to_scores_is_refused(name):
    model, inputs = made(name)
    holder = inputs.get("joint_attention_kwargs", inputs)
    holder["attention_mask"] = holder["attention_mask"].float()
    with pytest.raises(ValueError, match="float32 is added to the scores"):
        run(apply_diffratio(model, HALF), inputs)


def test_a_mask_of_pairs_is_refused():
    model, inputs = made("bria_fibo")
    pairs = torch.ones(2, 1, 41, 41, dtype=torch.bool)
    with pytest.raises(ValueError, match="pairs of tokens"):
        run(apply_diffratio(model, HALF), inputs | {"joint_attention_kwargs": {"attention_mask": pairs}})


@pytest.mark.parametrize("name", ["flux2", "chroma", "sd35"])
def test_arguments_of_other_processors_are_refused(name):
    model, inputs = made(name)
    with pytest.raises(ValueError, match=r"joint_attention_kwargs \(more\) is not supported"):
        run(apply_diffratio(model, HALF), inputs | {"joint_attention_kwargs": {"more": 1}})


def test_caches_of_keys_of_flux2_are_refused():
    model, inputs = made("flux2")
    with pytest.raises(ValueError, match="kv_cache"):
        run(apply_diffratio(model, HALF), inputs | {"kv_cache_mode": "extract", "num_ref_tokens": 9})
    model, inputs = made("flux2")
    for block in model.transformer_blocks:
        block.attn.set_processor(flux2.Flux2KVAttnProcessor())
    with pytest.raises(ValueError, match="Flux2KVAttnProcessor"):
        apply_diffratio(model, HALF)


def test_joined_projections_of_sd3_are_refused_and_then_not_read():
    model, inputs = made("sd35")
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match=FusedJointAttnProcessor2_0.__name__):
        apply_diffratio(model, HALF)
    model.unfuse_qkv_projections()
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.attn.to_qkv.weight.fill_(torch.nan)
        assert run(apply_diffratio(model, HALF), inputs).isfinite().all()


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("flux2", {27}),  # 9 of 36 are a reference
        ("flux3_reference", {36}),
        ("hunyuan_replace", {32}),  # the first of three frames
        ("framepack", {48}),  # without frames of the past
    ],
)
def test_conditions_are_kept_always(name, tokens):
    model, inputs = made(name)
    apply_diffratio(model, HALF)
    with torch.no_grad():
        run(model, inputs)
    assert {row.tokens for row in summary(model)} == tokens


def test_flux3_routes_no_blocks_of_text_and_of_references_alone():
    model, _ = made("flux3_reference")
    dense = summary(apply_diffratio(model, HALF)).dense
    assert dense == {
        "txt_mode_blocks.0": "it sees the text alone",
        "mode_blocks.image_cond.0": "it sees reference images alone",
    }


def test_flux3_modulates_by_kind_of_token_or_by_token():
    """The model gives all tokens of a kind one modulation, of which a routed block reads two."""
    model, inputs = made("flux3_reference")
    with torch.no_grad():
        apply_diffratio(model, HALF)
        wanted = run(model, inputs)
        model.__class__ = OwnForward
        torch.testing.assert_close(run(model, inputs), wanted)


def test_a_text_of_many_more_tokens_than_are_kept():
    """Without a gradient products share a buffer, which is as large as the kept rows need."""
    torch.manual_seed(0)
    block = flux2.Flux2TransformerBlock(D, HEADS, WIDTH).eval()
    inputs = {
        "hidden_states": torch.randn(2, 12, D), "encoder_hidden_states": torch.randn(2, 60, D),
        "temb_mod_img": torch.randn(2, 6 * D), "temb_mod_txt": torch.randn(2, 6 * D),
        "image_rotary_emb": angles(72),
    }  # fmt: skip
    model = Holder(block)
    apply_diffratio(model, DiffRatioConfig(compression=0.9))
    wanted = model(torch.tensor([0.5, 0.5]), inputs)
    with torch.no_grad():
        got = model(torch.tensor([0.5, 0.5]), inputs)
    torch.testing.assert_close(got, tuple(out.detach() for out in wanted))


@pytest.mark.parametrize("gradient", [False, True])
def test_a_text_of_no_tokens_is_left_as_it_is(gradient):
    torch.manual_seed(0)
    block = flux2.Flux2TransformerBlock(D, HEADS, WIDTH).eval()
    inputs = {
        "hidden_states": torch.randn(2, 12, D), "encoder_hidden_states": torch.randn(2, 0, D),
        "temb_mod_img": torch.randn(2, 6 * D), "temb_mod_txt": torch.randn(2, 6 * D),
        "image_rotary_emb": angles(12),
    }  # fmt: skip
    wanted_text, wanted = block(**inputs)
    model = Holder(block)
    apply_diffratio(model, DiffRatioConfig(compression=0.0))
    nn.init.zeros_(block.diffratio.router_weight)  # each score is 1
    with torch.set_grad_enabled(gradient):
        text, image = model(torch.tensor([0.5, 0.5]), inputs)
    torch.testing.assert_close(image, wanted, atol=2e-6, rtol=2e-5)
    assert text.shape == wanted_text.shape == (2, 0, D)
