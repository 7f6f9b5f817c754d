"""Text masks of LTX-Video, of which its blocks are given numbers to add."""

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.families import text_mask

from .cases import BLOCKS, MODELS
from .cases.case import Holder

TIMESTEP = torch.tensor([300, 700])


def test_a_bool_mask_is_taken_where_no_value_may_be_read(monkeypatch):
    """As on a GPU outside of training."""
    model, inputs = MODELS["ltx"]()
    with torch.no_grad():
        wanted = model(**inputs)[0]
        apply_diffratio(model, DiffRatioConfig(compression=0.0))
        for block in model.transformer_blocks:
            torch.nn.init.zeros_(block.diffratio.router_weight)
        monkeypatch.setattr(text_mask, "capturing", lambda: True)
        for mask in (inputs["encoder_attention_mask"], inputs["encoder_attention_mask"].float()):
            got = model(**inputs | {"encoder_attention_mask": mask})[0]
            torch.testing.assert_close(got, wanted, atol=5e-6, rtol=5e-5)


def test_a_mask_that_only_weighs_tokens_means_what_it_means_to_the_block():
    case = BLOCKS["ltx"]()
    case.inputs["encoder_attention_mask"] = case.inputs["encoder_attention_mask"] / 10000
    model = Holder(case.block)
    with torch.no_grad():
        wanted = case.block(**case.inputs)
        apply_diffratio(model, DiffRatioConfig(compression=0.0, rescale="none"))
        got = model(TIMESTEP, case.inputs, encoder_attention_mask=None)
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=2e-5)


def test_audio_is_made_where_no_token_of_the_video_is_kept():
    torch.manual_seed(0)
    case = BLOCKS["ltx2"]()
    model = Holder(case.block)
    with pytest.warns(UserWarning, match="untrained"):
        apply_diffratio(model, DiffRatioConfig(0.0, {0: [1.0]}))
    with torch.no_grad():
        video, audio = model(TIMESTEP, case.inputs, **case.told)
        del case.block.forward
        nothing = torch.zeros(0, dtype=torch.long)
        alone = [case.block(**case.alone(b, nothing))[1] for b in range(len(audio))]
    assert torch.equal(video, case.inputs["hidden_states"])
    torch.testing.assert_close(audio, torch.cat(alone))


def test_guidance_that_leaves_attention_out_of_some_samples_is_refused():
    model, inputs = MODELS["ltx2_guidance"]()
    apply_diffratio(model, DiffRatioConfig(compression=0.0))
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="left out of some samples alone"),
    ):
        model(**inputs, perturbation_mask=torch.tensor([0.0, 1.0]))


@pytest.mark.filterwarnings("ignore:the routers are untrained")
def test_a_compiled_model_is_one_graph():
    """Its class is one of those that torch takes into graphs as they are, so its forward cannot be looked
    at."""
    model, inputs = MODELS["ltx"]()
    apply_diffratio(model, DiffRatioConfig(compression=0.5))
    torch._dynamo.reset()
    with torch.no_grad():
        wanted = model(**inputs, return_dict=False)[0]
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs, return_dict=False)[0], wanted)
