"""Other people's DiTs: a block class of one's own, taught by register_block_spec."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from diffratio import BlockInputs, BlockSpec, DiffRatioConfig, apply_diffratio, register_block_spec, summary
from diffratio.integrations import spec as specs

WIDTH, HEADS = 32, 2


class OwnBlock(nn.Module):
    """An adaLN block whose forward takes what it likes and returns a tuple."""

    def __init__(self):
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def attend(self, normed):
        q, k, v = (
            linear(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for linear in (self.q, self.k, self.v)
        )
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def feed(self, normed):
        return self.down(gelu(self.up(normed), approximate="tanh"))

    def parts(self, condition):
        return self.modulation(silu(condition)).unflatten(-1, (6, -1))

    def forward(self, condition, tokens, *, note="none"):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.parts(condition)[:, :, None].unbind(1)
        tokens = tokens + gate1 * self.attend(self.norm(tokens) * (1 + scale1) + shift1)
        return tokens + gate2 * self.feed(self.norm(tokens) * (1 + scale2) + shift2), "extra"


class OwnModel(nn.Module):
    def __init__(self, block=OwnBlock, layers=3):
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(layers))

    def forward(self, tokens, timestep):
        # As DiTs that get one timestep for all samples do.
        condition = torch.sin(timestep[:1, None] / 100 + torch.arange(WIDTH)).expand(len(tokens), -1)
        for layer in self.layers:
            tokens, extra = layer(condition, tokens, note="keyword")
            assert extra == "extra"
        return tokens


class OwnSpec(BlockSpec):
    def width(self, block):
        return WIDTH

    def inputs(self, block, condition, tokens, *, note="none"):
        return BlockInputs(tokens, block.parts(condition), context={"note": note})

    def self_attention(self, block, normed, inputs):
        assert inputs.context == {"note": "keyword"}
        return block.attend(normed)

    def mlp(self, block, normed, inputs):
        return block.feed(normed)

    def output(self, block, x):
        return x, "extra"


class FusedSpec(OwnSpec):
    """Gives the raw weights too."""

    def why_not_fused(self, block):
        return None

    def qkv(self, block):
        return [block.q, block.k, block.v]

    def fused_arguments(self, block, inputs, qkv, qkv_bias):
        named = {"qkv_weight": qkv, "qkv_bias": qkv_bias, "num_heads": HEADS, "eps": inputs.eps}
        for name, linear in (("out", block.out), ("fc1", block.up), ("fc2", block.down)):
            named |= {f"{name}_weight": linear.weight, f"{name}_bias": linear.bias}
        return named


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Registrations of one test stay in it."""
    monkeypatch.setattr(specs, "_specs", dict(specs._specs))


@pytest.fixture(params=[OwnSpec, FusedSpec])
def own(request):
    register_block_spec(OwnBlock, request.param())
    return OwnModel()


def call(model, grad=False, timestep=(500, 500), batch=2):
    tokens = torch.randn(batch, 20, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(grad):
        return model(tokens, torch.tensor(timestep))


@pytest.mark.parametrize("grad", [False, True])
def test_keeping_every_token_equals_the_dense_model(own, grad):
    dense = call(own)
    apply_diffratio(own, DiffRatioConfig(0.0, rescale="none"))
    assert (call(own, grad) - dense).abs().max() <= 1e-6 * dense.abs().max()


def test_both_specs_and_both_paths_give_the_same(tiny):
    dense, outputs = OwnModel(), []
    for spec in (OwnSpec(), FusedSpec()):
        register_block_spec(OwnBlock, spec)
        model = tiny.route(copy.deepcopy(dense), 0.5)
        fused = {row.path for row in summary(model)} == {"mod_block"}
        assert fused == isinstance(spec, FusedSpec)
        outputs += [call(model), call(model, grad=True)]
    assert all((output - outputs[0]).abs().max() <= 2e-6 for output in outputs)


def test_the_summary_names_blocks_wherever_they_lie_and_why_they_run_as_modules(tiny):
    register_block_spec(OwnBlock, OwnSpec())
    rows = summary(tiny.route(OwnModel()), tokens=20)
    assert [row.name for row in rows] == ["layers.0", "layers.1", "layers.2"]
    assert {(row.kept_tokens, row.reason) for row in rows} == {((10,), "its spec gives no raw weights")}


def test_gradients_reach_the_router_and_the_modulation(own, tiny):
    call(tiny.route(own, 0.5), grad=True).square().sum().backward()
    for name, parameter in own.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_regions_follow_a_positional_timestep(own, tiny):
    tiny.route(own, num_regions=2, overrides={0: [0.1, 0.9]})
    call(own, timestep=(100, 100))
    assert own.layers[0]._diffratio.tenths == [9]
    call(own, timestep=(900, 900))
    assert own.layers[0]._diffratio.tenths == [1]


@pytest.mark.parametrize("grad", [False, True])
def test_timesteps_of_several_regions_that_are_not_one_per_sample_are_a_named_error(own, tiny, grad):
    tiny.route(own, num_regions=2, overrides={0: [0.1, 0.9]})
    with pytest.raises(ValueError, match="timestep holds 3 values in several regions.* batch of 2"):
        call(own, grad, timestep=(100, 900, 900))
    assert call(own, grad, timestep=(900, 900, 900)).isfinite().all()


def test_subclasses_of_a_registered_class_are_found_and_nearer_specs_win(tiny):
    class Child(OwnBlock):
        pass

    class Grandchild(Child):
        pass

    class Refusing(OwnSpec):
        def why_not(self, block):
            return "of the nearer spec"

    register_block_spec(OwnBlock, OwnSpec())
    assert len(summary(tiny.route(OwnModel(Grandchild)))) == 3
    register_block_spec(Child, Refusing())
    with pytest.raises(ValueError, match="layers.0: of the nearer spec.*"):
        apply_diffratio(OwnModel(Grandchild))
    assert len(summary(tiny.route(OwnModel()))) == 3


def test_an_unknown_block_is_an_error_that_names_the_way_out():
    with pytest.raises(ValueError, match="register_block_spec"):
        apply_diffratio(OwnModel())


@pytest.mark.parametrize("spec", [None, OwnSpec, object(), "spec"])
def test_a_spec_of_the_wrong_type_is_an_error(spec):
    with pytest.raises(TypeError, match="spec must be a BlockSpec"):
        register_block_spec(OwnBlock, spec)


@pytest.mark.parametrize("cls", [None, OwnSpec, int, "OwnBlock", OwnBlock()])
def test_a_class_of_the_wrong_type_is_an_error(cls):
    with pytest.raises(TypeError, match="cls must be a class of nn.Module"):
        register_block_spec(cls, OwnSpec())
