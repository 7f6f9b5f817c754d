"""MLPs of the families run by their products, with one kernel of ours between them; what is not known is
called."""

import pytest
import torch
from torch import nn

from .test_blocks import TOLERANCE, assert_same, made, routed, run

GATED = ("z_image", "krea2", "lumina2", "ernie_image", "flux2_double", "flux2_single", "ovis_single", "prx")
PARALLEL = ("flux_single", "chroma_single", "hunyuan_single", "motif_single", "bria_single")


def operators(case, model, grad):
    """Names of the operators that a call of the block runs."""
    with torch.set_grad_enabled(grad), torch.profiler.profile() as profile:
        run(case, model)
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("name", GATED + PARALLEL)
def test_our_kernel_runs_between_the_products(name):
    case = made(name)
    model = routed(case)
    names = operators(case, model, grad=False)
    assert "diffratio_native::activation" in names
    if name in PARALLEL:
        assert not names & {"aten::gelu", "aten::gelu_"}
    assert "diffratio::activation" in operators(case, model, grad=True)


@pytest.mark.parametrize("name", ["flux_double", "kandinsky5", "wan"])
def test_a_gelu_between_two_products_is_torchs_on_the_cpu(name):
    """In the memory of what it was given: of a module it would be a copy."""
    case = made(name)
    assert "aten::gelu_" in operators(case, routed(case), grad=False)


@pytest.mark.parametrize(
    ("name", "part", "other"),
    [
        ("z_image", "feed_forward.w1", None),
        ("z_image", "feed_forward.w3", None),
        ("flux2_double", "ff.act_fn.gate_fn", nn.Tanh()),
        ("flux_single", "act_mlp", nn.ReLU()),
        ("ovis_single", "act_mlp", nn.Tanh()),
        ("ovis_double", "ff.net.0.activation", nn.Tanh()),
        ("prx", "mlp_act", nn.Tanh()),
        ("kandinsky5", "feed_forward.activation", nn.ReLU()),
    ],
)
def test_a_part_that_is_not_known_is_called(name, part, other):
    """A hooked product, or another activation in the place of the known one."""
    case = made(name)
    owner, _, attribute = part.rpartition(".")
    with torch.no_grad():
        before = case.parts(case.block(**case.inputs))
        if other is None:
            case.block.get_submodule(part).register_forward_hook(lambda module, args, out: 2 * out)
        else:
            setattr(case.block.get_submodule(owner), attribute, other)
        wanted = case.parts(case.block(**case.inputs))
        assert not torch.allclose(before[0], wanted[0], atol=1e-3)
        assert_same(case, run(case, routed(case, (10, 10))), wanted, **TOLERANCE)
