"""The smallest sizes: no samples, no tokens, none kept, no text. Empty or untouched, never NaN."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels import mod_block, two_bin_block
from diffratio_kernels.testing.budget import gradients
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase, two_bin_arguments

ROWS, PRODUCTS = ("cpu", "triton", "reference"), ("triton", "sdpa", "reference")
NO_INDEX = torch.empty(0, dtype=torch.int64)


@pytest.mark.parametrize("backend", ROWS)
@pytest.mark.parametrize("keep", [[], [0], [3]], ids=str)
def test_a_batch_of_no_samples(keep, backend):
    option = {"backend": backend}
    a = ModBlockCase(seed=0).arguments() | option | {"keep": keep or [0]}
    for name in ("x", "modulation", "context_kv"):
        a[name] = a[name][:0]
    out, grads = gradients(mod_block, a, seed=0)
    assert out.shape == (0, 24, 32) and all(not grad.any() for grad in grads.values())
    for keep_small in (None, keep):
        index, start, logits = dk.route(a["x"], a["router_weight"], keep, keep_small=keep_small, **option)
        assert (index.shape, start.tolist(), logits.shape) == ((0,), [0], (0, 24))
    bins = {"keep_small": a["keep"], "keep_large": a.pop("keep"), "weight_large": torch.empty(0)}
    out, grads = gradients(two_bin_block, a | bins, seed=0)
    assert out.shape == (0, 24, 32) and all(not grad.any() for grad in grads.values())


TWO_BIN_STEPS = [(op, name) for op in ("two_bin_gelu", "two_bin_blend") for name in ROWS]
TWO_BIN_STEPS += [("two_bin_attention", name) for name in PRODUCTS]


@pytest.mark.parametrize(("op", "backend"), TWO_BIN_STEPS)
@pytest.mark.parametrize("keep", [(), (0, 0), (0, 3)], ids=str)
def test_steps_of_two_bins_without_samples_or_rows(keep, op, backend):
    sizes = {"batch": len(keep), "keep": keep, "keep_small": (0,) * len(keep)}
    case = TwoBinCase(seed=0, tokens=5, weight_large=(0.4,) * len(keep), **sizes)
    arguments = two_bin_arguments(case)[op] | {"backend": backend}
    out, grads = gradients(getattr(dk, op), arguments, seed=0)
    rows = sum(keep)
    expected = {
        "two_bin_gelu": (rows, 48),
        "two_bin_attention": (rows, 2, 16),
        "two_bin_blend": (len(keep), 5, 32),
    }
    assert out.shape == expected[op] and out.isfinite().all()
    assert all(grad.shape == arguments[name].shape and grad.isfinite().all() for name, grad in grads.items())


@pytest.mark.parametrize("backend", ROWS)
def test_samples_of_no_tokens(backend):
    a = ModBlockCase(seed=0, keep=(0,)).arguments() | {"backend": backend}
    assert mod_block(**a | {"x": a["x"][:, :0]}).shape == (2, 0, 32)
    a = TwoBinCase(seed=0, keep=(0,), keep_small=(0,)).arguments() | {"backend": backend}
    assert two_bin_block(**a | {"x": a["x"][:, :0]}).shape == (2, 0, 32)


@pytest.mark.parametrize("backend", ROWS)
def test_no_token_kept_gives_back_a_copy_of_x(backend):
    a = ModBlockCase(seed=0, keep=(0,)).arguments() | {"backend": backend}
    out, grads = gradients(mod_block, a, seed=0)
    assert torch.equal(out, a["x"]) and out.data_ptr() != a["x"].data_ptr()
    assert all(grad.any() == (name == "x") for name, grad in grads.items())
    a = TwoBinCase(seed=0, keep=(0,), keep_small=(0,)).arguments() | {"backend": backend}
    out, grads = gradients(two_bin_block, a, seed=0)
    assert torch.equal(out, a["x"]) and out.data_ptr() != a["x"].data_ptr()
    assert all(grad.any() == (name == "x") for name, grad in grads.items())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("keep", [(24,), (5, 13)], ids=str)
def test_a_small_bin_of_nothing_is_the_large_one_weighed(keep, weight, backend):
    """x + w (F(x) - x): with w = 1 the block of one bin, with w = 0 a copy of x."""
    case = TwoBinCase(seed=0, keep=keep, keep_small=(0,), weight_large=(weight, weight))
    a = case.arguments() | {"backend": backend}
    one = {name: t for name, t in a.items() if name not in ("keep_small", "keep_large", "weight_large")}
    expected = torch.lerp(a["x"], mod_block(**one, keep=a["keep_large"]), weight)
    out, grads = gradients(two_bin_block, a, seed=0)
    for result in (out, two_bin_block(**a)):
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)
    assert grads["weight_large"].all() and all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("backend", ROWS)
def test_row_operators_without_rows(backend):
    option = {"backend": backend}
    x, m, nothing = torch.randn(2, 24, 16), torch.randn(2, 16), torch.empty(0, 16)
    rows, normed = dk.gather_adaln(x, NO_INDEX, m, m, **option)
    assert rows.shape == normed.shape == (0, 16)
    assert dk.adaln(nothing, NO_INDEX, 24, m, m, **option).shape == (0, 16)
    of_none = nothing, NO_INDEX, x[..., 0]
    assert dk.activation(nothing, *of_none, kind="silu", **option).shape == (0, 16)
    assert torch.equal(dk.scatter_rescale(x, NO_INDEX, nothing, nothing, m, x[..., 0], **option), x)


@pytest.mark.parametrize("backend", ROWS)
@pytest.mark.parametrize("keep", [(5,), (5, 3)], ids=str)
def test_text_of_no_tokens_is_a_length_of_zero(keep, backend):
    a = ModBlockCase(seed=0, keep=keep).arguments() | {"backend": backend}
    zero = torch.zeros(2, dtype=torch.int32)
    expected, expected_grads = gradients(mod_block, a | {"context_lengths": zero}, seed=0)
    for lengths in (None, zero):
        none = a | {"context_kv": a["context_kv"][:, :0], "context_lengths": lengths}
        out, grads = gradients(mod_block, none, seed=0)
        assert torch.equal(out, expected)
        assert all(torch.equal(g, expected_grads[name]) for name, g in grads.items() if name != "context_kv")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_two_bins_and_a_text_of_no_tokens(backend):
    a = TwoBinCase(seed=0, keep=(5, 3), keep_small=(2, 3)).arguments() | {"backend": backend}
    zero = torch.zeros(2, dtype=torch.int32)
    expected, expected_grads = gradients(two_bin_block, a | {"context_lengths": zero}, seed=0)
    for lengths in (None, zero):
        none = a | {"context_kv": a["context_kv"][:, :0], "context_lengths": lengths}
        out, grads = gradients(two_bin_block, none, seed=0)
        assert torch.equal(out, expected)
        assert all(torch.equal(g, expected_grads[name]) for name, g in grads.items() if name != "context_kv")


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_one_token_attends_to_itself(heads, backend):
    """With N = 1 the attention is its own value: no text, so the block is linear algebra on one row."""
    case = ModBlockCase(
        seed=0, tokens=1, keep=(1,), heads=heads, text=None, rescale="none", dtype=torch.float64
    )
    a = case.arguments()
    shift1, scale1, gate1, shift2, scale2, gate2 = a["modulation"].unbind(1)
    linear, x = torch.nn.functional.linear, a["x"][:, 0]

    def norm(t, shift, scale):
        return torch.nn.functional.layer_norm(t, t.shape[-1:], eps=1e-6) * (1 + scale) + shift

    value = linear(norm(x, shift1, scale1), a["qkv_weight"], a["qkv_bias"]).chunk(3, dim=-1)[2]
    hidden = x + gate1 * linear(value, a["out_weight"], a["out_bias"])
    inner = linear(norm(hidden, shift2, scale2), a["fc1_weight"], a["fc1_bias"])
    branch = linear(torch.nn.functional.gelu(inner, approximate="tanh"), a["fc2_weight"], a["fc2_bias"])
    expected = (hidden + gate2 * branch)[:, None]
    actual = mod_block(**a, backend=backend)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
