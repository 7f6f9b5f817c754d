"""Classes and forwards that others patch, before and after routing: routed blocks do what the patch says.

At compression 0 without rescaling a routed model is the dense model, whatever was patched.
"""

import copy

import pytest
import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.normalization import AdaLayerNormZero
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
)

from diffratio import DiffRatioConfig, apply_diffratio, remove_diffratio, summary

WHOLE = DiffRatioConfig(0.0, rescale="none")


def tripled(function):
    """What a function gives, times three: nobody misses it."""

    def patched(*args, **kwargs):
        result = function(*args, **kwargs)
        return 3 * result if torch.is_tensor(result) else result

    return patched


CLASSES = {
    "processor": (AttnProcessor2_0, "__call__"),
    "attention": (Attention, "forward"),
    "ff": (FeedForward, "forward"),
    "gelu": (GELU, "forward"),
    "gelu's own": (GELU, "gelu"),
    "linear": (nn.Linear, "forward"),
    "linear's call": (nn.Linear, "__call__"),
    "dropout": (nn.Dropout, "forward"),
}
FUNCTIONS = {
    "F.linear": (nn.functional, "linear"),
    "F.gelu": (nn.functional, "gelu"),
    "F.sdpa": (nn.functional, "scaled_dot_product_attention"),
}


def equal(routed, dense):
    torch.testing.assert_close(routed, dense, rtol=0, atol=1e-5 * float(dense.detach().abs().max()))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_a_patched_class_is_obeyed(tiny, model, monkeypatch, name, after, grad):
    owner, method = CLASSES[name]
    inputs, dense = tiny.inputs(model), copy.deepcopy(model)
    plain = tiny.run(dense, inputs)
    if after:
        apply_diffratio(model, WHOLE)
        tiny.run(model, inputs, grad)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, tripled(getattr(owner, method)))
        if not after:
            apply_diffratio(model, WHOLE)
        expected = tiny.run(dense, inputs)
        assert not torch.allclose(expected, plain)
        equal(tiny.run(model, inputs, grad), expected)
        assert {row.path for row in summary(model)} == {"modules"}
    equal(tiny.run(model, inputs, grad), plain)
    assert {row.path for row in summary(model)} == {"mod_block"}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_hook_on_all_modules_sees_what_a_dense_block_calls(tiny, model, after, grad):
    inputs, dense = tiny.inputs(model), copy.deepcopy(model)
    apply_diffratio(model, WHOLE)
    if after:
        tiny.run(model, inputs, grad)

    def calls(model):
        names, seen = {module: name for name, module in model.named_modules()}, []
        handles = [
            register_module_forward_hook(lambda module, *_: seen.append(("hook", names.get(module)))),
            register_module_forward_pre_hook(lambda module, *_: seen.append(("pre", names.get(module)))),
        ]
        tiny.run(model, inputs, grad)
        for handle in handles:
            handle.remove()
        return sorted(seen)

    # A routed block computes its layer norms itself.
    kinds = nn.LayerNorm, AdaLayerNormZero
    norms = {name for name, part in model.named_modules() if "block" in name and isinstance(part, kinds)}
    own = {name for name, _ in model.named_modules() if name.endswith("diffratio")}
    assert [call for call in calls(model) if call[1] not in own] == [
        call for call in calls(dense) if call[1] not in norms
    ]
    assert {row.path for row in summary(model)} == {"mod_block"}


@pytest.mark.parametrize("grad", [False, True])
def test_a_hook_on_all_modules_is_obeyed(tiny, model, grad):
    """All but the norms, which a routed block computes itself."""
    inputs, dense = tiny.inputs(model), copy.deepcopy(model)
    apply_diffratio(model, WHOLE)

    def hook(module, args, output):
        return 1.1 * output if isinstance(module, (nn.Linear, FeedForward, GELU, Attention)) else None

    handle = register_module_forward_hook(hook)
    outputs = [tiny.run(model, inputs, grad), tiny.run(dense, inputs, grad)]
    handle.remove()
    equal(*outputs)


def test_a_backward_hook_on_all_modules_runs(tiny, model):
    apply_diffratio(model, WHOLE)
    seen = set()
    handle = register_module_full_backward_hook(lambda module, *_: seen.add(type(module)))
    tiny.run(model, tiny.inputs(model), grad=True).sum().backward()
    handle.remove()
    assert {nn.Linear, Attention, FeedForward} <= seen


@pytest.mark.parametrize("grad", [False, True])
def test_a_patched_call_of_all_modules_is_obeyed(tiny, model, monkeypatch, grad):
    """As tracers and profilers do it; all but the norms."""
    inputs, dense, call = tiny.inputs(model), copy.deepcopy(model), nn.Module.__call__
    apply_diffratio(model, WHOLE)

    def patched(module, *args, **kwargs):
        output = call(module, *args, **kwargs)
        return 1.1 * output if type(module) is nn.Linear else output

    monkeypatch.setattr(nn.Module, "__call__", patched)
    equal(tiny.run(model, inputs, grad), tiny.run(dense, inputs, grad))


class Halved(BasicTransformerBlock):
    """As token merging patches a model: the class of every block is swapped."""

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states + 0.5 * (super().forward(hidden_states, *args, **kwargs) - hidden_states)


class Named(BasicTransformerBlock):
    """A subclass that changes nothing."""


@pytest.mark.parametrize("how", ["swapped", "class patched", "instance"])
def test_a_block_with_a_forward_of_its_own_is_refused_before_and_after(tiny, model, monkeypatch, how):
    def patch():
        if how == "swapped":
            model.transformer_blocks[1].__class__ = Halved
        elif how == "class patched":
            monkeypatch.setattr(BasicTransformerBlock, "forward", Halved.forward)
        else:
            model.transformer_blocks[1].forward = lambda x, *_, **__: x

    before = copy.deepcopy(model)
    tiny.route(model)
    tiny.run(model, tiny.inputs(model))
    model, before = before, model
    patch()
    with pytest.raises(ValueError, match="forward"):
        apply_diffratio(model, WHOLE)
    if how == "instance":
        return  # whoever replaces a routed forward has taken the routing off
    model = before
    patch()
    assert "forward" in summary(model)[1].reason
    for grad in (False, True):
        with pytest.raises(ValueError, match="forward.*remove"):
            tiny.run(model, tiny.inputs(model), grad)


@pytest.mark.parametrize("after", [False, True])
def test_a_subclass_without_a_forward_is_routed(tiny, model, after):
    inputs, dense = tiny.inputs(model), tiny.run(model, tiny.inputs(model))
    if after:
        apply_diffratio(model, WHOLE)
    for block in model.transformer_blocks:
        block.__class__ = Named
    if not after:
        apply_diffratio(model, WHOLE)
    equal(tiny.run(model, inputs), dense)
    assert {type(block) for block in remove_diffratio(model).transformer_blocks} == {Named}


class Loud(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class LoudProcessor(AttnProcessor2_0):
    def __call__(self, *args, **kwargs):
        return 3 * super().__call__(*args, **kwargs)


class LoudAttention(Attention):
    def forward(self, *args, **kwargs):
        return 3 * super().forward(*args, **kwargs)


class LoudFeedForward(FeedForward):
    def forward(self, *args, **kwargs):
        return 3 * super().forward(*args, **kwargs)


class LoudDropout(nn.Dropout):
    def forward(self, x):
        return 3 * x


class LoudGELU(GELU):
    def gelu(self, gate):
        return 3 * super().gelu(gate)


SWAPS = {
    "attn1.to_q": Loud, "attn1.to_out.0": Loud, "ff.net.0.proj": Loud, "ff.net.2": Loud,
    "ff": LoudFeedForward, "ff.net.0": LoudGELU, "attn1": LoudAttention,
    "ff.net.1": LoudDropout, "attn1.to_out.1": LoudDropout,
}  # fmt: skip


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", [*SWAPS, "processor"])
def test_a_module_of_another_class_is_obeyed(tiny, model, name, after, grad):
    inputs, dense = tiny.inputs(model), copy.deepcopy(model)

    def swap(model):
        block = model.transformer_blocks[1]
        if name == "processor":
            block.attn1.set_processor(LoudProcessor())
        else:
            block.get_submodule(name).__class__ = SWAPS[name]

    if after:
        apply_diffratio(model, WHOLE)
        tiny.run(model, inputs, grad)
    swap(model), swap(dense)
    if not after:
        apply_diffratio(model, WHOLE)
    equal(tiny.run(model, inputs, grad), tiny.run(dense, inputs))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", [*SWAPS])
def test_a_forward_on_an_instance_is_obeyed(tiny, model, name, after, grad):
    inputs, dense = tiny.inputs(model), copy.deepcopy(model)

    def patch(model):
        module = model.transformer_blocks[1].get_submodule(name)
        module.forward = tripled(module.forward)

    if after:
        apply_diffratio(model, WHOLE)
        tiny.run(model, inputs, grad)
    patch(model), patch(dense)
    if not after:
        apply_diffratio(model, WHOLE)
    equal(tiny.run(model, inputs, grad), tiny.run(dense, inputs))


NORMS = {
    "hook": lambda norm: norm.register_forward_hook(lambda module, args, output: None),
    "pre-hook": lambda norm: norm.register_forward_pre_hook(lambda module, args: None),
    "backward hook": lambda norm: norm.register_full_backward_hook(lambda *_: None),
    "forward": lambda norm: setattr(norm, "forward", tripled(norm.forward)),
    "class": lambda norm: setattr(norm, "__class__", type("Odd", (type(norm),), {})),
    "affine part": lambda norm: setattr(getattr(norm, "norm", norm), "weight", nn.Parameter(torch.ones(32))),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("change", NORMS)
@pytest.mark.parametrize("name", ["pixart norm1", "pixart norm2", "dit norm1", "dit norm1.norm", "dit norm3"])
def test_what_changes_a_norm_is_refused_by_name(tiny, name, change, after, grad):
    kind, _, name = name.partition(" ")
    model = tiny.make(kind)
    if after:
        apply_diffratio(model, WHOLE)
        tiny.run(model, tiny.inputs(model), grad)
    NORMS[change](model.transformer_blocks[1].get_submodule(name))
    with pytest.raises(ValueError, match="norm"):
        apply_diffratio(model, WHOLE)
        tiny.run(model, tiny.inputs(model), grad)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["norm1.emb", "norm1.linear", "norm1.silu"])
def test_what_a_norm_calls_is_called(tiny, name, after):
    model = tiny.dit()
    inputs, dense = tiny.inputs(model), copy.deepcopy(model)
    for one in (model, dense):
        if one is model and after:
            apply_diffratio(model, WHOLE)
            tiny.run(model, inputs)
        module = one.transformer_blocks[1].get_submodule(name)
        module.register_forward_hook(lambda module, args, output: 3 * output)
    apply_diffratio(model, WHOLE)
    for grad in (False, True):
        equal(tiny.run(model, inputs, grad), tiny.run(dense, inputs))


@pytest.mark.parametrize("owner", [nn.LayerNorm, AdaLayerNormZero])
@pytest.mark.parametrize("after", [False, True])
def test_a_patched_norm_class_is_refused(tiny, model, monkeypatch, owner, after):
    if owner is AdaLayerNormZero and hasattr(model, "adaln_single"):
        pytest.skip("PixArt has no AdaLayerNormZero")
    inputs = tiny.inputs(model)
    if after:
        apply_diffratio(model, WHOLE)
        tiny.run(model, inputs)
    forward = owner.forward
    monkeypatch.setattr(owner, "forward", lambda self, *args, **kwargs: forward(self, *args, **kwargs))
    with pytest.raises(ValueError, match="norm"):
        apply_diffratio(model, WHOLE)
        tiny.run(model, inputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_patched_function_is_obeyed_with_gradients(tiny, model, monkeypatch, name):
    """torch's functions, as attention libraries replace them."""
    owner, function = FUNCTIONS[name]
    inputs, dense = tiny.inputs(model), copy.deepcopy(model)
    apply_diffratio(model, WHOLE)
    monkeypatch.setattr(owner, function, tripled(getattr(owner, function)))
    equal(tiny.run(model, inputs, True), tiny.run(dense, inputs, True))
