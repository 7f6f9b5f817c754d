"""The calls and the check that GPU tests are made of: they run on the CPU, and they see a fault."""

from dataclasses import replace

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing import budget
from diffratio_kernels.testing.cases import CASE, WITHOUT_GRADIENT, operator_calls
from tools.checks import operators
from tools.checks.operators import OPERATOR_CHECKS, check_operator
from tools.launchers.calls import kernel_device

ROWS = {
    "route",
    "gather_adaln",
    "adaln",
    "qk_norm_rope",
    "gate_residual",
    "activation",
    "scatter_rescale",
    "scatter_rescale_",
    "mod_block",
}
ROWS |= {"two_bin_gelu", "two_bin_blend", "two_bin_block"}
EVERY = ROWS | {"attention", "mlp", "two_bin_attention"}
CONSTANT = ("cos", "sin")
"""Arguments that no operator gives a gradient."""


@pytest.fixture(autouse=True)
def own_table_of_ratios(monkeypatch):
    monkeypatch.setattr(budget, "worst", {})


def test_there_is_a_call_of_every_operator_that_has_the_backend():
    calls = {name: set(operator_calls(name, torch.bfloat16, "cpu")) for name in ("cpu", "triton", "auto")}
    assert calls == {"cpu": ROWS, "triton": EVERY, "auto": EVERY}
    assert set(operator_calls("cuda", torch.bfloat16, "cpu")) == ROWS


@pytest.mark.parametrize("op", sorted(EVERY))
@pytest.mark.parametrize("keep", [(29,), (29, 13)], ids=str)
def test_a_call_runs_forward_and_backward_and_sees_new_values(op, keep):
    case = replace(CASE, keep=keep)
    call, other = (operator_calls("auto", torch.float32, "cpu", seed, case)[op] for seed in (1, 2))
    assert set(call.runs()) == ({"forward"} if op in WITHOUT_GRADIENT else {"forward", "training"})
    before = call.forward()
    call.overwrite(other)
    for name, run in call.runs().items():
        results, expected = run(), other.runs()[name]()
        assert len(results) == len(expected) > 0
        for a, b in zip(results, expected, strict=True):
            assert not a.requires_grad and torch.equal(a, b)
    assert not all(torch.equal(a, b) for a, b in zip(before, call.forward(), strict=True))


@pytest.mark.parametrize("op", sorted(EVERY - {*WITHOUT_GRADIENT}))
def test_training_gives_a_gradient_to_every_floating_argument(op):
    call = operator_calls("auto", torch.float32, "cpu")[op]
    tensors = {name: t for name, t in call.arguments.items() if isinstance(t, torch.Tensor)}
    floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
    grads = dict(zip(floats, call.training()[len(call.forward()) :], strict=True))
    assert all(grads[name].shape == t.shape for name, t in floats.items())
    assert all(grad.isfinite().all() and grad.any() == (name not in CONSTANT) for name, grad in grads.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", OPERATOR_CHECKS)
def test_reference_is_within_its_own_budget(op, dtype):
    for seed in range(4):
        check_operator(op, seed, dtype, "reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", OPERATOR_CHECKS)
def test_cpp_is_within_the_budget(op, dtype):
    for seed in range(6):
        check_operator(op, seed, dtype, "cpu")


@pytest.mark.parametrize("op", OPERATOR_CHECKS)
def test_triton_is_within_the_budget(op):
    for seed in range(3):
        check_operator(op, seed, torch.float16, "triton", kernel_device())


@pytest.mark.parametrize("op", OPERATOR_CHECKS)
def test_the_check_sees_a_gradient_that_is_one_percent_too_large(op, monkeypatch):
    """And names the seed; the output is the right one."""
    plain = operators.differentiate

    def differentiate(function, leaves, incoming):
        results = plain(function, leaves, incoming)
        return {key: t * 1.01 if key.startswith("d ") else t for key, t in results.items()}

    monkeypatch.setattr(operators, "differentiate", differentiate)
    failed = []
    for seed in range(6):  # some draw nothing: no samples, no rows
        try:
            check_operator(op, seed, torch.float32, "reference")
        except AssertionError as error:
            failed.append(str(error))
            assert f"seed {seed}: {op} reference float32: d " in str(error)
    assert failed


def test_the_check_sees_a_row_from_another_place(monkeypatch):
    plain = dk.gather_adaln

    def rolled(x, *args, **kwargs):
        return plain(x.roll(1, 1), *args, **kwargs)

    monkeypatch.setattr(dk, "gather_adaln", rolled)
    with pytest.raises(AssertionError, match="gather_adaln reference float32: rows, seed"):
        for seed in range(6):
            check_operator("gather_adaln", seed, torch.float32, "reference")
