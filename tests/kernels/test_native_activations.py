"""The activations of the C++ kernels, value and slope, over their whole range: an exponential and an error
function of our own. `test_native_gelu.py` has the GELU by tanh."""

import pytest
import torch

from diffratio_kernels.ops.activation import cpu
from diffratio_kernels.types import Gated

pytestmark = pytest.mark.usefixtures("every_instruction_set")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def value_and_slope(pre, kind):
    given = Gated(pre[None], None, kind)
    slope, _, _ = cpu.activation_backward(torch.ones_like(pre)[None], given)
    return cpu.activation(given)[0], slope[0]


def exact(x, kind):
    """In fp64: the value, and the two terms of the slope."""
    if kind == "silu":
        gate, rest = torch.sigmoid(x), torch.sigmoid(-x)
        return x * gate, gate, x * gate * rest
    gate = torch.special.erfc(-x / 2**0.5) / 2
    return x * gate, gate, x * torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["gelu", "silu"])
def test_value_and_slope_keep_their_digits(kind, dtype):
    """exp(z) turns a rounding of z into |z| of them, and the GELU's z is x^2 / 2."""
    pre = torch.cat([torch.linspace(-12, 12, 6001), torch.linspace(-1.5, -0.5, 500), torch.zeros(1)])
    pre = pre.to(dtype)
    value, first, second = exact(pre.double(), kind)
    wide, eps = torch.finfo(torch.promote_types(dtype, torch.float32)), torch.finfo(dtype).eps
    power = pre.double().abs() if kind == "silu" else pre.double().square() / 2
    tiny = max(wide.tiny * 1e4, torch.finfo(dtype).smallest_normal * eps)
    rounding = wide.eps * (8 + 4 * power) + (0 if eps == wide.eps else eps)
    actual_value, actual_slope = value_and_slope(pre, kind)
    assert ((actual_value.double() - value).abs() <= rounding * value.abs() + tiny).all()
    terms = first.abs() + second.abs()
    assert ((actual_slope.double() - (first + second)).abs() <= rounding * terms + tiny).all()
    assert (actual_value[pre == 0] == 0).all() and (actual_slope[pre == 0] == 0.5).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["gelu", "silu"])
def test_far_outside_it_is_zero_or_x(kind, dtype):
    largest = torch.finfo(dtype).max
    pre = torch.tensor([-largest, -1e4, -300.0, -88.0, 88.0, 300.0, 1e4, largest], dtype=dtype)
    value, slope = (t.double() for t in value_and_slope(pre, kind))
    assert value[:4].abs().max() < 1e-25 and torch.equal(value[4:], pre[4:].double())
    assert slope[:4].abs().max() < 1e-25 and slope[4:].eq(1).all()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", ["gelu", "silu"])
def test_a_nan_stays_one_where_it_is(kind, dtype):
    pre = torch.zeros(40, dtype=dtype)
    pre[7] = torch.nan
    value, slope = value_and_slope(pre, kind)
    assert value.isnan().nonzero().tolist() == slope.isnan().nonzero().tolist() == [[7]]
