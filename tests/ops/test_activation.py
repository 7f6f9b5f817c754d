"""`activation`: act(gate), times value, times the score of the row; into the memory of one of them, or beside
other columns."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels._backends import kernels, unavailable_reason
from diffratio_kernels._checks import ACTIVATIONS
from diffratio_kernels.types import Activation, Gated

T, F = 6, 37
BACKENDS = [b for b in ("cpu", "triton", "reference") if unavailable_reason(b, "cpu") is None]
TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}
INDEX = torch.tensor([5, 0, 3, 8, 6, 9])


def by_definition(x, kind):
    """In fp64."""
    if kind == "silu":
        return x / (1 + (-x).exp())
    if kind == "gelu":
        return x * torch.distributions.Normal(0.0, 1.0).cdf(x)
    return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def joined():
    """Gate and value side by side, and logits of two samples of five rows."""
    return 2 * torch.randn(T, 2 * F), torch.randn(2, 5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gate_is_activated_and_multiplied_by_value_and_score(kind, backend):
    pre, logits = joined()
    gate, value = pre.chunk(2, dim=1)
    wanted = by_definition(gate.double(), kind)
    score = 2 * logits.double().flatten()[INDEX].sigmoid()[:, None]
    options = {"kind": kind, "backend": backend}
    torch.testing.assert_close(dk.activation(gate, **options), wanted.float(), **TOLERANCE)
    wanted = wanted * value.double()
    torch.testing.assert_close(dk.activation(gate, value, **options), wanted.float(), **TOLERANCE)
    scored = dk.activation(gate, value, INDEX, logits, score_scale=2.0, **options)
    torch.testing.assert_close(scored, (score * wanted).float(), **TOLERANCE)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("gated", [False, True], ids=["alone", "gated"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gradients_of_the_kernels_are_those_of_the_definition(kind, gated, backend):
    pre, logits = joined()
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype).detach().requires_grad_() for t in (*pre.chunk(2, dim=1), logits)]
        gate, value, of_rows = leaves[0], leaves[1] if gated else None, leaves[2]
        if dtype == torch.float32:
            options = {"kind": kind, "score_scale": 2.0, "backend": backend}
            out = dk.activation(gate, value, INDEX, of_rows, **options)
        else:
            out = by_definition(gate, kind) * (1 if value is None else value)
            out = out * 2 * of_rows.flatten()[INDEX].sigmoid()[:, None]
        torch.manual_seed(1)
        out.backward(torch.randn(T, F).to(dtype))
        found.append([leaf.grad for leaf in leaves if leaf.grad is not None])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted.float(), rtol=2e-5, atol=1e-5)
    assert found[0][-1].flatten()[[1, 2, 4, 7]].eq(0).all()  # of rows that are not kept


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_written_over_the_gate_or_beside_other_columns(backend):
    pre, logits = joined()
    gate, value = pre.chunk(2, dim=1)
    run = kernels("activation", backend).activation
    given = Gated(gate, value, "silu", INDEX, logits, 2.0)
    wanted, before = run(given), value.clone()
    beside = torch.full((T, 3 + F), 7.0)
    run(given, beside[:, 3:])
    assert torch.equal(beside[:, 3:], wanted) and beside[:, :3].eq(7).all()
    run(given, gate)
    assert torch.equal(gate, wanted) and torch.equal(value, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_nothing_was_decided_of_has_the_factor_that_its_logit_says(backend):
    """Rows that are kept always have an infinite logit: a factor of 1, and no gradient."""
    gate = torch.randn(2, F)
    logits = torch.tensor([[torch.inf, 0.0]], requires_grad=True)
    out = dk.activation(gate, None, torch.tensor([0, 1]), logits, backend=backend)
    plain = dk.activation(gate, backend=backend)
    torch.testing.assert_close(out.detach(), plain * torch.tensor([[1.0], [0.5]]), rtol=1e-6, atol=1e-6)
    out.sum().backward()
    assert logits.grad[0, 0] == 0 and logits.grad[0, 1] != 0


def test_halves_are_found_where_the_family_has_them():
    pre = torch.randn(2, 6)
    assert Activation().parts(pre) == (pre, None)
    gate, value = Activation("silu", gate="last").parts(pre)
    assert torch.equal(gate, pre[:, 3:]) and torch.equal(value, pre[:, :3])
    assert Activation("silu", gate="first").parts(gate, value) == (gate, value)
    assert Activation("silu", gate="last").parts(gate, value) == (value, gate)
