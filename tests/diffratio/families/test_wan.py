"""What the blocks made of Wan's do besides."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformerBlock

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio_kernels import kept_tokens

from .cases import BLOCKS
from .cases.case import HEADS, D, Holder, N, awake

TIMESTEP = torch.tensor([300, 700])


def routed(block):
    model = Holder(block)
    with pytest.warns(UserWarning, match="untrained"):
        apply_diffratio(model, DiffRatioConfig(compression=0.5))
    return model


def test_vace_first_joins_control_and_video_and_last_gives_a_hint_of_every_token():
    """A block that projects its input is one without that on what it projects; skipped rows of the hint are
    projected too."""
    torch.manual_seed(0)
    case = BLOCKS["wan_vace"]()
    block, given = case.block, dict(case.inputs)
    first = awake(WanVACETransformerBlock(D, 3 * D, HEADS, cross_attn_norm=True, apply_input_projection=True,
                                          apply_output_projection=True))  # fmt: skip
    first.load_state_dict(block.state_dict(), strict=False)
    models = [routed(one) for one in (first, block)]
    with torch.no_grad():
        block.diffratio.router_weight.copy_(torch.randn(D))
        first.diffratio.router_weight.copy_(block.diffratio.router_weight)
        hint, control = models[0](TIMESTEP, given)
        given["control_hidden_states"] = joined = (
            first.proj_in(given["control_hidden_states"]) + given["hidden_states"]
        )
        wanted_hint, wanted = models[1](TIMESTEP, given)
        torch.testing.assert_close(control, wanted)
        torch.testing.assert_close(hint, wanted_hint)
        torch.testing.assert_close(hint, block.proj_out(control))
    assert ((control != joined).any(-1).sum(1) == kept_tokens(5, N)).all()


def test_skyreels_mask_of_frames_is_refused():
    case = BLOCKS["skyreels"]()
    model = routed(case.block)
    case.inputs["attention_mask"] = torch.ones(1, 1, N, N, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="attention_mask is not supported"):
        model(TIMESTEP, case.inputs)


@pytest.mark.parametrize("name", ["wan", "wan_ti2v", "skyreels"])
def test_half_tokens_stay_half_beside_a_table_in_fp32(name):
    """As the models keep `scale_shift_table` and norms, under autocast too."""
    case = BLOCKS[name]()
    model = routed(case.block)
    case.block.bfloat16()
    case.block.scale_shift_table.data = case.block.scale_shift_table.data.float()
    case.inputs["hidden_states"] = case.inputs["hidden_states"].bfloat16()
    case.inputs["encoder_hidden_states"] = case.inputs["encoder_hidden_states"].bfloat16()
    for autocast in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert model(TIMESTEP, case.inputs).dtype == torch.bfloat16
