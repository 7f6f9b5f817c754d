"""`activation` in CUDA C++, in the simulator: the results of the reference, the same bits everywhere."""

import os
from dataclasses import replace

import pytest
import torch

from diffratio_kernels._backends import kernels
from diffratio_kernels._checks import ACTIVATIONS
from diffratio_kernels.ops.activation import cuda
from diffratio_kernels.testing.cases import laid_out
from diffratio_kernels.types import Gated
from tools.guards.poison import poisoned_memory
from tools.launchers import activations
from tools.launchers.calls import ALL, typical_call
from tools.launchers.check import check_call, same_bits
from tools.launchers.draw import Draw

pytestmark = pytest.mark.usefixtures("simulated", "instead_of_triton")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
STEP = 12


@pytest.fixture
def instead_of_triton(monkeypatch):
    """Calls of the launchers' cases go to the CUDA C++ backend, whose functions are the same."""
    monkeypatch.setattr(activations, "kernels", lambda folder, _: kernels(folder, "cuda"))


def drawn_gated(kind, rows, width, dtype, gated=True, scored=True):
    """Both halves of one product, and the score of every second row of two samples."""
    joined = (2 * torch.randn(rows, 2 * width)).to(dtype)
    logits = torch.randn(2, rows) if scored else None
    index = 1 + 2 * torch.arange(rows) if scored else None
    return Gated(joined[:, :width], joined[:, width:] if gated else None, kind, index, logits, 2.0)


def run_all(given, grad):
    """Both kernels: name -> tensor."""
    grads = cuda.activation_backward(grad, given)
    found = zip(("inner", "d gate", "d value", "d logits"), (cuda.activation(given), *grads), strict=True)
    return {name: t for name, t in found if t is not None}


def assert_same(found, expected, same_code):
    """The same bits; in the executor other code may have other products and sums fused."""
    for name, t in expected.items():
        if same_code or "DIFFRATIO_PTX" not in os.environ:
            assert same_bits(found[name], t), name
        else:
            torch.testing.assert_close(found[name], t)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", [0, STEP, 2 * STEP])
def test_random_calls_are_within_the_error_budget(first, dtype):
    for seed in range(first, first + STEP):

        def drawn(again=0, seed=seed):
            return ALL["activation"].draw(Draw(seed, dtype, again))

        check_call("activation", drawn(), seed, drawn)


def test_the_calls_have_all_of_it():
    calls = [ALL["activation"].draw(Draw(seed, DTYPES[0])) for seed in range(3 * STEP)]
    calls = [call for call in calls if len(call["gate"]) > 0]
    assert {call["kind"] for call in calls} == {*ACTIVATIONS}
    assert {(call["value"] is None, call["places"] is None) for call in calls} == {
        (value, places) for value in (True, False) for places in (True, False)
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["activation, gated", "activation, alone"])
def test_same_bits_under_every_schedule_in_poisoned_memory(simulator, kind, dtype):
    operator, arguments = typical_call(kind, dtype)
    expected = operator.kernels(**arguments)
    try:
        with poisoned_memory():
            for seed in range(3):
                simulator.seed(seed)
                found = operator.kernels(**arguments)
                assert all(same_bits(found[key], t) for key, t in expected.items())
    finally:
        simulator.seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_same_bits_in_every_layout(kind, layout, dtype):
    """ "offset" is misaligned, so that the kernels read it element by element."""
    given, grad = drawn_gated(kind, 5, 40, dtype), torch.randn(5, 40).to(dtype)
    elsewhere = {name: laid_out(getattr(given, name), layout) for name in ("gate", "value", "logits")}
    found = run_all(replace(given, **elsewhere), laid_out(grad, layout))
    assert_same(found, run_all(given, grad), layout != "offset")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("more", [1, 16])
def test_same_bits_at_any_alignment_of_rows(more, dtype):
    """Halves and outputs that begin where 16 bytes do, in rows that may not."""
    given, grad = drawn_gated("silu", 5, 48, dtype), torch.randn(5, 48).to(dtype)
    gate, value, out = (torch.zeros(5, 48 + more, dtype=dtype)[:, :48] for _ in range(3))
    beside = replace(given, gate=gate.copy_(given.gate), value=value.copy_(given.value))
    found, expected = run_all(beside, grad), run_all(given, grad)
    assert_same(found | {"inner": cuda.activation(beside, out)}, expected, more % 8 == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_far_from_zero_nothing_overflows_or_cancels(kind, dtype):
    """Beside the exact value in fp64: the tail of the gate, and its slope where the gate is nearly 1."""
    limit = min(torch.finfo(dtype).max, 1e30)
    near, far = torch.linspace(-6, 18, 120), torch.tensor([100.0, 1e4, limit]).sort().values
    gate = torch.cat([-far.flip(0), near, far]).to(dtype)[None]
    given = Gated(gate, None, kind, None, None, 1.0)
    found, grad = cuda.activation(given), torch.ones_like(gate)
    slope, *_ = cuda.activation_backward(grad, given)
    exact = gate.double().requires_grad_()
    expected = activations.reference.activation(replace(given, gate=exact))
    (of_slope,) = torch.autograd.grad(expected.sum(), exact)
    close = {"rtol": torch.finfo(dtype).eps + 4e-6, "atol": torch.finfo(dtype).smallest_normal}
    torch.testing.assert_close(found.double(), expected.detach(), **close)
    # gate + x density has a zero, where nothing is exact to a part of itself
    torch.testing.assert_close(slope.double(), of_slope, rtol=close["rtol"], atol=4e-7)


def test_rows_without_a_score_have_no_gradient_of_their_logits():
    given = drawn_gated("silu", 6, 12, torch.float32)
    with poisoned_memory():
        *_, of_logits = cuda.activation_backward(torch.randn(6, 12), given)
    assert of_logits.flatten()[::2].eq(0).all() and of_logits.flatten()[1::2].ne(0).all()


@pytest.mark.parametrize(("rows", "width"), [(0, 16), (3, 0)])
def test_nothing_to_do(rows, width):
    found = run_all(drawn_gated("gelu", rows, width, torch.float32), torch.zeros(rows, width))
    assert found["inner"].shape == (rows, width) and not found["d logits"].any()
