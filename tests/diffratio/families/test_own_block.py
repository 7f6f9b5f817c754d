"""Other people's DiTs: a block class of one's own, taught by register_block_spec."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from diffratio import (
    Call,
    CrossAttention,
    DiffRatioConfig,
    Mlp,
    SelfAttention,
    Spec,
    Stream,
    apply_diffratio,
    by_count,
    learn_ratios,
    record_routing,
    register_block_spec,
    summary,
)
from diffratio.families import registry as specs
from diffratio_kernels.types import Linear

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
        condition = torch.sin(timestep[:1, None] / 100 + torch.arange(WIDTH)).to(tokens)
        condition = condition.expand(len(tokens), -1)
        for layer in self.layers:
            tokens, extra = layer(condition, tokens, note="keyword")
            assert extra == "extra"
        return tokens


def with_extra(tokens, text):
    return tokens, "extra"


class OwnSpec(Spec):
    """By the block's own methods: attention wants samples [b, k, D], the MLP takes packed rows."""

    def width(self, block):
        return WIDTH

    def bind(self, block, condition, tokens, *, note="none"):
        assert note == "keyword"
        return Call(Stream(tokens, block.parts(condition), *self.branches(block)), output=with_extra)

    def branches(self, block):
        def attend(normed, rows):
            return by_count(block.attend, normed, rows)

        def feed(normed, rows):
            return block.feed(normed)

        return attend, feed


class ProductSpec(OwnSpec):
    """Takes attention and MLP apart into modules, which are called on packed rows."""

    def product(self, linear):
        return linear

    def branches(self, block):
        q, k, v, out, up, down = map(
            self.product, (block.q, block.k, block.v, block.out, block.up, block.down)
        )
        return SelfAttention((q, k, v), out, HEADS), Mlp(up, down, block.down.bias)


class UnknownFc2Spec(ProductSpec):
    """Says nothing of what fc2 adds."""

    def branches(self, block):
        attention, mlp = super().branches(block)
        return attention, Mlp(mlp.fc1, mlp.fc2)


class FusedSpec(ProductSpec):
    """Gives the raw weights."""

    def product(self, linear):
        return Linear(linear.weight, linear.bias)

    def slow_reason(self, block):
        return None


SPECS = [OwnSpec, ProductSpec, UnknownFc2Spec, FusedSpec]


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Registrations of one test stay in it."""
    monkeypatch.setattr(specs, "_specs", dict(specs._specs))


@pytest.fixture(params=SPECS)
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


def test_all_specs_and_both_paths_give_the_same(tiny):
    dense, outputs = OwnModel(), []
    for spec in SPECS:
        register_block_spec(OwnBlock, spec())
        model = tiny.route(copy.deepcopy(dense), 0.5)
        fused = {row.path for row in summary(model)} == {"mod_block"}
        assert fused == (spec is FusedSpec)
        outputs += [call(model), call(model, grad=True)]
    assert all((output - outputs[0]).abs().max() <= 2e-6 for output in outputs)


def test_all_specs_train_ratios_alike(tiny):
    dense, found = OwnModel().double(), []
    for spec in SPECS:
        register_block_spec(OwnBlock, spec())
        model = tiny.route(copy.deepcopy(dense), 0.5)
        learn_ratios(model, start=0.55)
        tokens = torch.randn(2, 20, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        model(tokens, torch.tensor([500, 500])).square().sum().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in found[0].items():  # that of the keys' bias is 0 but for rounding
        for other in found[1:]:
            assert (other[name] - expected).abs().max() <= 1e-6 * expected.abs().max() + 1e-12, name


def test_a_spec_whose_tensors_do_not_fit_is_an_error_by_name(tiny):
    """Kernels read what they are given."""

    class OneModulation(FusedSpec):
        def bind(self, block, condition, tokens, *, note="none"):
            return super().bind(block, condition[:1], tokens, note=note)

    register_block_spec(OwnBlock, OneModulation())
    model = tiny.route(OwnModel())
    for grad in (False, True):
        with pytest.raises(ValueError, match=r"layers.0: modulation must be \[B, 6, D\] with B=2"):
            call(model, grad)


def narrow(inputs, rows):
    return inputs[:, : WIDTH // 2]


TEXT = torch.randn(2, 5, 2, WIDTH)
WRONG = {
    "attention too narrow": ({"attention": narrow}, "attention of a Call"),
    "attention of one row": ({"attention": lambda x, rows: x[:1]}, "attention of a Call"),
    "attention of nothing": ({"attention": lambda x, rows: None}, "attention of a Call .* NoneType"),
    "after attention one column": ({"after": lambda x, rows: x[:, :1]}, "after_attention of a Call"),
    "MLP too narrow": ({"mlp": narrow}, "mlp of a Call"),
    "MLP of a tuple": ({"mlp": lambda x, rows: (x, x)}, "mlp of a Call .* tuple"),
    "fc2 too narrow": ({"mlp": Mlp(nn.Linear(WIDTH, 64), nn.Linear(64, 16))}, "of a Call|branch"),
    "value too narrow": ({"widths": (32, 32, 16)}, "SelfAttention.project|value"),
    "lengths above M": ({"lengths": torch.tensor([3, 9], dtype=torch.int32)}, "lengths"),
    "lengths below 0": ({"lengths": torch.tensor([3, -1], dtype=torch.int32)}, "lengths"),
    "lengths of one sample": ({"lengths": torch.tensor([3], dtype=torch.int32)}, "lengths"),
    "lengths in int64": ({"lengths": torch.tensor([3, 2])}, "lengths"),
    "lengths in a list": ({"lengths": [3, 2]}, "lengths"),
}


@pytest.mark.parametrize("raw", [False, True], ids=["modules", "weights"])
@pytest.mark.parametrize("way", ["inference", "training", "two bins"])
@pytest.mark.parametrize(("wrong", "words"), WRONG.values(), ids=WRONG)
def test_a_part_that_does_not_fit_is_named(tiny, wrong, words, way, raw):
    """Inference launches kernels that do not look, and torch would broadcast."""

    class Wrong(FusedSpec if raw else ProductSpec):
        def bind(self, block, condition, tokens, *, note="none"):
            call = super().bind(block, condition, tokens, note=note)
            image = call.image
            image.attention = wrong.get("attention", image.attention)
            image.mlp = wrong.get("mlp", image.mlp)
            call.after_attention = wrong.get("after")
            if "widths" in wrong:
                parts = (self.product(nn.Linear(WIDTH, width)) for width in wrong["widths"])
                image.attention = SelfAttention(tuple(parts), image.attention.out, HEADS)
            if "lengths" in wrong:
                query, out = self.product(block.q), self.product(block.out)
                call.after_attention = CrossAttention(query, out, HEADS, TEXT, wrong["lengths"])
            return call

    register_block_spec(OwnBlock, Wrong())
    model = tiny.route(OwnModel(layers=1), 0.5)
    if way == "two bins":
        learn_ratios(model, start=0.55)
    with pytest.raises((ValueError, TypeError), match=words):
        call(model, grad=way != "inference")


def test_a_spec_that_gives_no_call_is_named(tiny):
    class Streams(FusedSpec):
        def bind(self, block, condition, tokens, *, note="none"):
            return super().bind(block, condition, tokens, note=note).image

    register_block_spec(OwnBlock, Streams())
    with pytest.raises(TypeError, match="layers.0: Streams.bind must return a Call, got Stream"):
        call(tiny.route(OwnModel()))


def test_one_input_at_two_timesteps_is_recomputed_as_it_was(tiny):
    """Checkpointing's recomputation finds its decision by the block's input, which both calls share."""
    register_block_spec(OwnBlock, FusedSpec())
    tokens = torch.randn(2, 20, WIDTH)
    grads = []
    for share in (tokens, tokens.clone()):
        torch.manual_seed(0)
        model = tiny.route(OwnModel(layers=1), num_regions=2, overrides={0: [0.2, 0.7]})
        layer, conditions = model.layers[0], torch.randn(2, 2, WIDTH)
        outputs = []
        for timestep, inputs, condition in zip((100, 900), (tokens, share), conditions, strict=True):
            model._diffratio_model.enter(torch.tensor([timestep]))
            forward = partial(layer, note="keyword")
            outputs.append(checkpoint(forward, condition, inputs, use_reentrant=False)[0])
        (outputs[0].square().sum() + 3 * outputs[1].square().sum()).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[1])


def test_a_forward_past_the_call_has_no_regions_of_the_call_before(tiny):
    register_block_spec(OwnBlock, FusedSpec())
    model = tiny.route(OwnModel(), num_regions=2, overrides={0: [0.2, 0.7]})
    call(model)
    with pytest.raises(RuntimeError, match="layers.0: no timestep was seen"):
        model.forward(torch.randn(2, 20, WIDTH), torch.tensor([900, 900]))


def test_a_copied_block_in_a_new_list_belongs_to_the_model(tiny):
    register_block_spec(OwnBlock, FusedSpec())
    model = tiny.route(OwnModel(), 0.5)
    learn_ratios(model, start=0.55)
    call(model, grad=True)
    model.layers = nn.ModuleList([*model.layers, copy.deepcopy(model.layers[0])])
    call(model, grad=True).square().sum().backward()
    assert all(layer._diffratio.model is model._diffratio_model for layer in model.layers)
    assert [layer._diffratio.name for layer in model.layers] == [f"layers.{i}" for i in range(4)]


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
    with record_routing(own) as log:
        call(own, timestep=(100, 100))
        call(own, timestep=(900, 900))
    assert [log[i].kept().sum(1).tolist() for i in (0, 3)] == [[18, 18], [2, 2]]


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
        def unsupported_reason(self, block):
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
    with pytest.raises(TypeError, match="spec must be a Spec"):
        register_block_spec(OwnBlock, spec)


@pytest.mark.parametrize("cls", [None, OwnSpec, int, "OwnBlock", OwnBlock()])
def test_a_class_of_the_wrong_type_is_an_error(cls):
    with pytest.raises(TypeError, match="cls must be a class of nn.Module"):
        register_block_spec(cls, OwnSpec())
