"""Mixed dtypes: under autocast the residual stream keeps the dtype of x; without it they are named errors."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels import mod_block, reference, two_bin_block
from diffratio_kernels.testing.budget import check_budget, gradients, longest_sum
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase, cast

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
STREAM = ("x", "modulation", "router_weight", "router_bias")
BINS = {"keep_small": (5, 20), "weight_large": (0.3, -0.5)}
TEXTS = {"text": {}, "ragged text": {"ragged_text": True}, "no text": {"text": None}}


def short(dtype):
    return str(dtype).removeprefix("torch.")


def mixed(x_dtype, weight_dtype, make=ModBlockCase, **options):
    """Arguments of a block: x in one dtype, the weights in another; router, modulation and bins in fp32."""
    case = make(seed=7, keep=(13, 20), router_bias=True, **options)
    arguments = case.arguments()
    stream = {name: arguments[name] for name in (*STREAM, "weight_large") if name in arguments}
    return cast(arguments, weight_dtype) | stream | {"x": stream["x"].to(x_dtype)}


def autocast(function, dtype=BF16):
    def run(**arguments):
        with torch.autocast("cpu", dtype):
            return function(**arguments)

    return run


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("weight_dtype", [FP32, BF16], ids=lambda d: f"weights {short(d)}")
@pytest.mark.parametrize("x_dtype", [FP32, BF16], ids=lambda d: f"x {short(d)}")
def test_block_under_autocast_is_within_the_budget(x_dtype, weight_dtype, text):
    arguments = mixed(x_dtype, weight_dtype, **TEXTS[text])
    index = dk.route(
        arguments["x"], arguments["router_weight"], [13, 20], router_bias=arguments["router_bias"]
    )[0]
    arguments["index"] = index
    gold, gold_grads = gradients(reference.mod_block, cast(arguments, FP64), seed=0)
    peer, peer_grads = gradients(autocast(reference.mod_block), arguments, seed=0)
    out, grads = gradients(autocast(mod_block), arguments, seed=0)
    with torch.no_grad():
        inference = autocast(mod_block)(**arguments)
    name = f"autocast, x {short(x_dtype)}, weights {short(weight_dtype)}"
    for result in (out, inference):
        assert result.dtype == x_dtype
        check_budget(name, result, peer, gold, terms=longest_sum(arguments))
    for key, grad in grads.items():
        assert grad.dtype == arguments[key].dtype and grad.isfinite().all(), key
        if key.endswith("_weight") or key in ("x", "modulation"):
            assert grad.abs().max() > 1e-6, key
            check_budget(
                f"{name}: gradients", grad, peer_grads[key], gold_grads[key], factor=3,
                terms=longest_sum(arguments),
            )  # fmt: skip


TWO_BINS = [
    (FP32, FP32, (0.3, -0.5)),
    (FP32, FP32, (1.0, 1.0)),
    (FP32, BF16, (0.3, -0.5)),
    (BF16, FP32, (0.0, 0.0)),
]


@pytest.mark.parametrize(("x_dtype", "weight_dtype", "weights"), TWO_BINS, ids=str)
def test_two_bins_under_autocast_are_within_the_budget(x_dtype, weight_dtype, weights):
    options = BINS | {"weight_large": weights, "ragged_text": True}
    arguments = mixed(x_dtype, weight_dtype, TwoBinCase, **options)
    router = {name: arguments[name] for name in ("x", "router_weight", "router_bias", "keep_small")}
    arguments["index"] = dk.route(keep=[13, 20], **router)[0]
    gold, gold_grads = gradients(reference.two_bin_block, cast(arguments, FP64), seed=0)
    peer, peer_grads = gradients(autocast(reference.two_bin_block), arguments, seed=0)
    out, grads = gradients(autocast(two_bin_block), arguments, seed=0)
    with torch.no_grad():
        inference = autocast(two_bin_block)(**arguments)
    name = f"autocast of two bins, x {short(x_dtype)}, weights {short(weight_dtype)}"
    for result in (out, inference):
        assert result.dtype == x_dtype
        check_budget(name, result, peer, gold, terms=longest_sum(arguments))
    for key, grad in grads.items():
        assert grad.dtype == arguments[key].dtype and grad.isfinite().all(), key
        if (key.endswith("_weight") or key in ("x", "modulation")) and gold_grads[key].abs().max() > 1e-6:
            check_budget(
                f"{name}: gradients", grad, peer_grads[key], gold_grads[key], factor=3,
                terms=longest_sum(arguments),
            )  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_operators_that_only_cuda_casts_change_nothing(backend):
    """CUDA's autocast has torch.addr in its list, the CPU's has not: here it has too."""
    arguments = mixed(FP32, FP32, TwoBinCase, **BINS) | {"backend": backend}
    out, grads = gradients(autocast(two_bin_block), arguments, seed=0)
    casts = []

    def addr(*tensors):
        casts.append(tensors)
        with torch.autocast("cpu", enabled=False):
            return torch.addr(*(t.to(BF16) for t in tensors))

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("addr", addr, "AutocastCPU")
        again, grads_again = gradients(autocast(two_bin_block), arguments, seed=0)
        with torch.autocast("cpu", BF16):
            assert torch.addr(torch.ones(2, 2), torch.ones(2), torch.ones(2)).dtype == BF16
    assert len(casts) == 1 and torch.equal(again, out)
    assert all(torch.equal(grads_again[name], grad) for name, grad in grads.items())


@pytest.mark.parametrize("x_dtype", [FP32, FP16], ids=lambda d: f"x {short(d)}")
@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_autocast_to_float16_keeps_the_dtype_of_x_too(x_dtype, backend):
    arguments = mixed(x_dtype, FP32) | {"backend": backend}
    run = autocast(mod_block, FP16)
    out, grads = gradients(run, arguments, seed=0)
    with torch.no_grad():
        inference = run(**arguments)
    expected = mod_block(**cast(arguments, FP64) | {"backend": "auto"})
    for result in (out, inference):
        assert result.dtype == x_dtype
        # A chain of 8 roundings of float16 on values up to 5.
        assert (result.double() - expected).abs().max() < 8 * torch.finfo(FP16).eps * 5
    assert all(grad.dtype == arguments[name].dtype and grad.isfinite().all() for name, grad in grads.items())


@pytest.mark.parametrize("argument", ["qkv_weight", "out_bias", "fc1_weight", "cross_q_weight", "context_kv"])
@pytest.mark.parametrize("weight_dtype", [FP32, BF16, FP16], ids=short)
@pytest.mark.parametrize(("make", "block"), [(ModBlockCase, mod_block), (TwoBinCase, two_bin_block)])
def test_without_autocast_mixed_dtypes_are_named(make, block, argument, weight_dtype):
    x_dtype = BF16 if weight_dtype is FP32 else FP32
    arguments = mixed(x_dtype, x_dtype, make)
    arguments[argument] = arguments[argument].to(weight_dtype)
    name = f"{block.__name__}: {argument}"
    with pytest.raises(TypeError, match=f"{name} must have the dtype of x, {x_dtype}"):
        block(**arguments)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP64], ids=short)
@pytest.mark.parametrize("x_dtype", [FP32, BF16, FP16], ids=short)
def test_router_and_modulation_may_be_of_any_dtype(x_dtype, dtype):
    """Without autocast: the output has the dtype of x and each gradient that of its argument."""
    arguments = mixed(x_dtype, x_dtype)
    for name in ("router_weight", "router_bias", "modulation"):
        arguments[name] = arguments[name].to(dtype)
    index = dk.route(
        arguments["x"], arguments["router_weight"], [13, 20], router_bias=arguments["router_bias"]
    )[0]
    arguments["index"] = index
    gold, _ = gradients(reference.mod_block, cast(arguments, FP64), seed=0)
    peer, _ = gradients(reference.mod_block, arguments, seed=0)
    out, grads = gradients(mod_block, arguments, seed=0)
    for result in (out, mod_block(**arguments)):
        check_budget(
            f"x {short(x_dtype)}, modulation of another dtype",
            result,
            peer,
            gold,
            terms=longest_sum(arguments),
        )
    assert all(grad.dtype == arguments[name].dtype for name, grad in grads.items())


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP64], ids=short)
@pytest.mark.parametrize("x_dtype", [FP32, BF16], ids=short)
def test_weights_of_bins_may_be_of_any_dtype(x_dtype, dtype):
    """They are brought to fp32; of their gradient, a sum in fp64, only the last rounding differs."""
    options = BINS | {"weight_large": (0.25, -0.5)}
    arguments = mixed(x_dtype, x_dtype, TwoBinCase, **options)
    expected, expected_grads = gradients(two_bin_block, arguments, seed=0)
    arguments["weight_large"] = arguments["weight_large"].to(dtype)
    out, grads = gradients(two_bin_block, arguments, seed=0)
    assert torch.equal(out, expected) and out.dtype == x_dtype and grads["weight_large"].dtype == dtype
    rounding = 3 * max(torch.finfo(dtype).eps, torch.finfo(x_dtype).eps)
    torch.testing.assert_close(
        grads["weight_large"].double(), expected_grads["weight_large"].double(), rtol=rounding, atol=0
    )


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=short)
def test_each_step_keeps_its_dtype_under_autocast(dtype):
    a = mixed(FP32, FP32)
    x, (shift, scale, gate) = a["x"], a["modulation"].unbind(1)[:3]
    with torch.autocast("cpu", dtype):
        index, offsets, logits = dk.route(x, a["router_weight"], [13, 20])
        rows, normed = dk.gather_adaln(x, index, shift, scale)
        heads = torch.nn.functional.linear(normed, a["qkv_weight"]).view(33, 3, 2, 16).unbind(1)
        attended = dk.attention(*heads, offsets, offsets, 20, 20)
        branch = torch.nn.functional.linear(attended.flatten(1), a["out_weight"])
        out = dk.scatter_rescale(x, index, rows, branch, gate, logits)
        pre = torch.nn.functional.linear(torch.cat([rows, rows[:5]]), a["fc1_weight"])
        bins = torch.tensor([0.3, 0.8]), offsets, torch.tensor([0, 5, 5], dtype=torch.int32)
        inner = dk.two_bin_gelu(pre, *bins, 33)
        both = dk.two_bin_attention(*heads, *bins[1:], 20, 5, 5)
        blended = dk.two_bin_blend(x, index, torch.cat([rows, rows[:5]]), branch, gate, logits, *bins)
        mixed_heads = dk.attention(normed.view(33, 2, 16), *heads[1:], offsets, offsets, 20, 20)
    assert logits.dtype == rows.dtype == normed.dtype == out.dtype == FP32
    assert attended.dtype == branch.dtype == mixed_heads.dtype == dtype
    assert blended.dtype == FP32 and inner.dtype == both.dtype == dtype
