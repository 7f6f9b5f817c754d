"""`mlp` through cuBLASLt's epilogue: when it is chosen, when it is refused, and what it computes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import diffratio_kernels as dk
from diffratio_kernels import _backends, _triton
from diffratio_kernels._triton import tiles
from diffratio_kernels.ops.mlp import cublaslt
from diffratio_kernels.ops.mlp.op import choose_mlp
from diffratio_kernels.testing.cases import ModBlockCase
from diffratio_kernels.types import Linear

CASE = ModBlockCase(seed=5, keep=(9, 4), dtype=torch.bfloat16)
WEIGHTS = "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"
BETWEEN_THE_GELUS = 5e-4  # the largest distance of the tanh GELU from the exact one


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_triton, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(tiles, "capability", lambda device: 90)


@pytest.fixture
def on_the_cpu(monkeypatch):
    """The epilogue's call on CPU tensors, where torch gives it the exact GELU."""
    plain = _backends.unavailable_reason

    def reason(backend, device_type, dtype=None):
        return None if backend == "cublaslt" else plain(backend, device_type, dtype)

    monkeypatch.setattr(_backends, "unavailable_reason", reason)
    monkeypatch.setitem(_backends._AUTO, "cpu", ("cpu", "cublaslt", "sdpa", "reference"))


def on_a_gpu(*shape, dtype):
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


@pytest.mark.parametrize(
    ("dtype", "bias", "gradient", "chosen"),
    [
        (torch.bfloat16, True, False, "cublaslt"),
        (torch.float16, True, False, "cublaslt"),
        (torch.bfloat16, False, False, "triton"),
        (torch.bfloat16, True, True, "triton"),
        (torch.float32, True, False, "reference"),
        (torch.float32, True, True, "reference"),
        (torch.float64, True, False, "reference"),
    ],
)
def test_auto_takes_the_epilogue_in_half_with_a_bias_and_without_a_gradient(
    gpu, dtype, bias, gradient, chosen
):
    fc1_bias = on_a_gpu(8, dtype=dtype) if bias else None
    assert choose_mlp("auto", on_a_gpu(4, 8, dtype=dtype), fc1_bias, gradient) == chosen


def arguments():
    block = CASE.arguments()
    return block["x"].flatten(0, 1), *(block[name] for name in WEIGHTS)


def test_the_cpu_is_refused_because_its_gelu_is_another():
    rows, *weights = (t.float() for t in arguments())
    pre = F.linear(rows, *weights[:2])
    torch.testing.assert_close(
        cublaslt.linear_gelu(rows, Linear(*weights[:2])), F.gelu(pre), rtol=0, atol=1e-5
    )
    assert (F.gelu(pre) - F.gelu(pre, approximate="tanh")).abs().max() > BETWEEN_THE_GELUS / 2
    with pytest.raises(ValueError, match="mlp: backend='cublaslt' is not available: .* CUDA"):
        dk.mlp(*arguments(), backend="cublaslt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtypes_whose_digits_the_epilogue_may_not_have_are_refused(gpu, dtype):
    with pytest.raises(ValueError, match="mlp: .* do not take float"):
        choose_mlp("cublaslt", on_a_gpu(4, 8, dtype=dtype), on_a_gpu(8, dtype=dtype), gradient=False)


def test_no_bias_and_a_gradient_are_refused(on_the_cpu):
    rows, fc1_weight, fc1_bias, *second = arguments()
    with pytest.raises(ValueError, match="mlp: backend='cublaslt' needs fc1_bias"):
        dk.mlp(rows, fc1_weight, None, *second, backend="cublaslt")
    with pytest.raises(ValueError, match="mlp: backend='cublaslt' gives no gradient"):
        dk.mlp(rows.requires_grad_(), fc1_weight, fc1_bias, *second, backend="cublaslt")


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_other_activations(activation, backend):
    """Results and gradients are those of the definition; cuBLASLt's epilogue has none of them."""
    found, options = [], {"activation": activation, "backend": backend}
    act = F.gelu if activation == "gelu" else F.silu
    for ours in (True, False):
        leaves = [t.detach().float().requires_grad_() for t in arguments()]
        if ours:
            out = dk.mlp(*leaves, **options)
            torch.testing.assert_close(dk.mlp(*(t.detach() for t in leaves), **options), out)
        else:
            out = F.linear(act(F.linear(*leaves[:3])), *leaves[3:])
        out.square().sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_epilogue_has_the_tanh_gelu_alone(gpu):
    rows, bias = on_a_gpu(4, 8, dtype=torch.bfloat16), on_a_gpu(8, dtype=torch.bfloat16)
    assert choose_mlp("auto", rows, bias, False, "gelu") == "triton"
    with pytest.raises(ValueError, match="mlp: backend='cublaslt' has no silu"):
        choose_mlp("cublaslt", rows, bias, False, "silu")


def test_product_and_bias_are_those_of_the_reference(on_the_cpu):
    """But for the GELU of the CPU, whose error fc2 adds up in the worst case."""
    bound = arguments()[3].double().abs().sum(1).max() * BETWEEN_THE_GELUS
    gold = dk.mlp(*(t.double() for t in arguments()), backend="reference")
    actual, peer = (dk.mlp(*arguments(), backend=name).double() for name in ("cublaslt", "reference"))
    assert (actual - gold).abs().max() <= 2 * (peer - gold).abs().max() + bound


def called_epilogue(call):
    with torch.profiler.profile() as profile:
        result = call()
    return result, "aten::_addmm_activation" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_a_block_runs_it_in_its_shared_buffer_but_not_in_training(training, on_the_cpu):
    block = CASE.arguments()
    block["x"].requires_grad_(training)
    out, called = called_epilogue(lambda: dk.mod_block(**block))
    assert called is not training
    expected = dk.mod_block(**block, backend="reference").float()
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)


def test_a_block_without_the_bias_runs_the_reference(on_the_cpu):
    block = replace(CASE, biases=False).arguments()
    assert block["fc1_bias"] is None
    assert not called_epilogue(lambda: dk.mod_block(**block))[1]
