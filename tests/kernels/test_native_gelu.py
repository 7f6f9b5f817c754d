"""The GELU of the two-bin kernels, value and slope, over its whole range: an exponential of our own."""

import math

import pytest
import torch

from diffratio_kernels.ops.two_bin_gelu import cpu
from diffratio_kernels.types import Bins

pytestmark = pytest.mark.usefixtures("every_instruction_set")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ONE, NONE = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 0], dtype=torch.int32)


def value_and_slope(pre):
    """gelu(pre) and its derivative by the C++ kernels: one row that only the large bin keeps, weight 1."""
    bins = Bins(torch.ones(1), ONE, NONE, rows=1, small=0)
    value = cpu.two_bin_gelu(pre[None], bins)
    slope, dots = cpu.two_bin_gelu_backward(torch.ones_like(pre)[None], pre[None], bins)
    return value[0], slope[0], dots[0]


def exact(x):
    """In fp64: the value, and the two terms of the slope, which cancel near x = -0.75."""
    c, a = 2 * math.sqrt(2 / math.pi), 0.044715
    z = c * (x + a * x**3)
    gate, rest = torch.sigmoid(z), torch.sigmoid(-z)
    return x * gate, gate, x * gate * rest * c * (1 + 3 * a * x * x), z


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_slope_keep_their_digits_up_to_30(dtype):
    """exp(z) turns a rounding of z into |z| of them. What is left of a z below -87 is not told apart in fp32,
    and the slope's polynomial makes up to 6000 of it."""
    pre = torch.cat([torch.linspace(-30, 30, 6001), torch.linspace(-1, -0.5, 500), torch.zeros(1)]).to(dtype)
    value, first, second, z = exact(pre.double())
    wide, eps = torch.finfo(torch.promote_types(dtype, torch.float32)), torch.finfo(dtype).eps
    tiny = max(wide.tiny * 1e4, torch.finfo(dtype).smallest_normal * eps)
    rounding = wide.eps * (8 + 4 * z.abs()) + (0 if eps == wide.eps else eps)
    actual_value, actual_slope, _ = value_and_slope(pre)
    assert ((actual_value.double() - value).abs() <= rounding * value.abs() + tiny).all()
    slope_terms = first.abs() + second.abs()
    assert ((actual_slope.double() - (first + second)).abs() <= rounding * slope_terms + tiny).all()
    assert (actual_value[pre == 0] == 0).all() and (actual_slope[pre == 0] == 0.5).all()
    assert (actual_value[pre > 10] == pre[pre > 10]).all() and (actual_slope[pre > 10] == 1).all()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1, 0x7F800001, 0x7FC00001], ids=hex)
def test_a_nan_of_any_payload_stays_one_where_it_is(dtype, bits):
    pre = torch.zeros(40)
    pre.view(torch.int32)[7] = bits
    pre = pre.to(dtype)
    value, slope, dots = value_and_slope(pre)
    assert value.isnan().nonzero().tolist() == slope.isnan().nonzero().tolist() == [[7]] and dots.isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_outside_it_is_zero_or_x(dtype):
    largest = torch.finfo(dtype).max
    pre = torch.tensor([-largest, -1e4, -300.0, -88.0, 88.0, 300.0, 1e4, largest], dtype=dtype)
    value, slope = (t.double() for t in value_and_slope(pre)[:2])
    assert value[:4].abs().max() < 1e-25 and torch.equal(value[4:], pre[4:].double())
    assert slope[:4].abs().max() < 1e-25 and slope[4:].eq(1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_both_bins_share_cancels_in_the_gradient_of_the_weight(dtype):
    """A sum of many terms of which little is left: added up in fp64, it is nothing where the bins agree."""
    pre, grad = torch.randn(2, 5000).to(dtype)
    bins = Bins(torch.tensor([0.25]), ONE, ONE, rows=1, small=1)
    dots = cpu.two_bin_gelu_backward(grad[None], torch.stack([pre, pre]), bins)[1]
    assert dots.abs() <= 1e-12 * (grad.double() * pre.double()).abs().sum()
