"""What two bins in one computation save: the backward of a bin without weight, and memory. What is reused."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import diffratio_kernels as dk
from diffratio.evaluation.memory import peak_bytes
from diffratio_kernels import mod_block, two_bin_block
from diffratio_kernels.testing.budget import gradients
from diffratio_kernels.testing.cases import TwoBinCase, cast

SIZES = {"seed": 0, "tokens": 64, "keep": (40,), "keep_small": (24,)}
WIDTH, HIDDEN = 32, 48
ONE_BIN = {1.0: ("small", 24), 0.0: ("large", 40)}
"""Weight of the large bin -> the bin that has none, and how many tokens of each sample that bin keeps."""


def of_attention(query, key, value, cu_seqlens_q, *_, backend="auto", **options):
    """FLOPs of the operator `attention` without a gradient, which torch's counter does not see through, by
    shapes of samples of equal counts."""
    rows, heads, width = query
    return 4 * rows * key[0] // (cu_seqlens_q[0] - 1) * heads * width if backend == "reference" else 0


def flops(weight, text=None, **options):
    """(FLOPs of the forward pass, of the backward pass) with this weight of the large bin in both samples."""
    arguments = TwoBinCase(**SIZES, text=text, weight_large=(weight, weight)).arguments() | options
    leaves = {
        name: t.requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t
        for name, t in arguments.items()
    }
    of_operators = {torch.ops.diffratio.attention: of_attention}
    with FlopCounterMode(display=False, custom_mapping=of_operators) as counter:
        out = two_bin_block(**leaves, attention="reference")  # torch does not count SDPA on the CPU
        forward = counter.get_total_flops()
        out.backward(torch.ones_like(out))
    return forward, counter.get_total_flops() - forward


@pytest.mark.parametrize(("backend", "text"), [("cpu", 5), ("cpu", None), ("reference", None)])
@pytest.mark.parametrize("weight", ONE_BIN)
def test_a_bin_without_weight_gets_no_backward(weight, backend, text):
    option = {"backend": backend, "text": text}
    name, keep = ONE_BIN[weight]
    forward, both = flops(0.5, **option)
    products = [(WIDTH, WIDTH), (WIDTH, HIDDEN), (keep, WIDTH), (keep, WIDTH)]  # out, fc1, attention
    products += [] if text is None else [(WIDTH, WIDTH)] * 2  # to and from cross-attention, itself by SDPA
    idle = sum(2 * 2 * 2 * keep * inner * outer for inner, outer in products)  # 2 samples, 2 products each
    assert flops(weight, **option) == (forward, both - idle)
    assert flops(weight, **option, forward_only=name) == (forward, both - idle)
    assert flops(weight, **option, forward_only="none") == (forward, both)
    assert flops(0.5, **option, forward_only="auto") == (forward, both)


@pytest.mark.parametrize("rescale", ["mlp", "residual"])
@pytest.mark.parametrize("weight", ONE_BIN)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_gets_no_backward_had_no_gradient(backend, weight, rescale):
    case = TwoBinCase(
        seed=3, keep=(13, 9), keep_small=(5, 0), weight_large=(weight, weight), rescale=rescale,
        router_bias=True, ragged_text=True, dtype=torch.float64,
    )  # fmt: skip
    arguments = case.arguments() | {"backend": backend}
    expected, expected_grads = gradients(two_bin_block, arguments | {"forward_only": "none"}, seed=0)
    for choice in ("auto", ONE_BIN[weight][0]):
        out, grads = gradients(two_bin_block, arguments | {"forward_only": choice}, seed=0)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected_grads[name], rtol=1e-12, atol=1e-12)
    assert expected_grads["weight_large"].all()


def test_a_bin_without_weight_makes_no_graph_where_none_is_wanted():
    arguments = TwoBinCase(**SIZES, weight_large=(1.0, 1.0)).arguments()
    weight = arguments["fc1_weight"].requires_grad_()
    kept = []
    sees_all = torch.autograd.graph.saved_tensors_hooks(kept.append, kept.append)
    with torch.no_grad(), torch.autocast("cpu"), sees_all:
        assert not two_bin_block(**arguments).requires_grad
    assert not kept and weight.grad is None


@pytest.mark.parametrize("weight", [1e-3, 0.02, 0.5])
def test_the_gradient_of_a_bias_keeps_its_digits_where_its_rows_weigh_little(weight):
    """All rows are kept by the large bin alone: the gradient is w times a sum, not a sum less most of it."""
    case = TwoBinCase(seed=1, keep=(20,), keep_small=(0,), weight_large=(weight, weight))
    arguments = case.arguments() | {"index": torch.arange(48).view(2, 24)[:, :20].flatten()}
    _, grads = gradients(two_bin_block, arguments, seed=0)
    _, gold = gradients(two_bin_block, cast(arguments, torch.float64), seed=0)
    for name in ("fc2_bias", "fc1_bias", "out_bias"):
        error = (grads[name] - gold[name]).abs().max()
        assert error <= 16 * torch.finfo(torch.float32).eps * gold[name].abs().max(), name


def training_peak(function, arguments):
    """Peak bytes of a forward and backward pass."""

    def run():
        gradients(function, arguments, seed=0)

    run()
    return peak_bytes(run)


def two_passes(keep_small, keep_large, weight_large, **arguments):
    small, large = (mod_block(**arguments, keep=keep) for keep in (keep_small, keep_large))
    return torch.lerp(small, large, weight_large[:, None, None])


@pytest.mark.parametrize(("tenths", "text"), [((4, 5), None), ((8, 9), 20)], ids=str)
def test_training_takes_less_memory_than_two_passes(tenths, text):
    small, large = (n * 512 // 10 for n in tenths)
    case = TwoBinCase(
        seed=0, tokens=512, heads=4, head_dim=32, hidden=512, text=text, keep=(large,), keep_small=(small,)
    )
    arguments = case.arguments()
    assert training_peak(two_bin_block, arguments) < 0.97 * training_peak(two_passes, arguments)


def test_a_checkpoint_gives_the_bits_of_the_plain_call():
    """With the selection made outside: the recomputation takes it instead of deciding again."""
    arguments = TwoBinCase(**SIZES, weight_large=(0.3, 0.8)).arguments()
    router = {name: arguments[name] for name in ("x", "router_weight", "router_bias", "keep_small")}
    plain, plain_grads = gradients(two_bin_block, arguments, seed=0)
    arguments["index"] = dk.route(keep=arguments["keep_large"], **router)[0]

    def checkpointed(**leaves):
        return checkpoint(lambda x: two_bin_block(**leaves | {"x": x}), leaves["x"], use_reentrant=False)

    for function in (two_bin_block, checkpointed):
        out, grads = gradients(function, arguments, seed=0)
        assert torch.equal(out, plain)
        for name, grad in grads.items():
            assert torch.equal(grad, plain_grads[name]), name
