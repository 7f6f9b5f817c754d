"""RatioTable: bins and weights of every kind of ratio, gradients, copies to the host, the authors' quirks."""

import copy

import pytest
import torch

from diffratio_kernels import reference
from diffratio_kernels.blocks.bins import bracketing_bins, snap_to_bins
from diffratio_kernels.blocks.ratio_table import RatioTable

BINS = (10, 9, 8, 7, 6, 5, 4, 3)


def table(*values, regions=1, **settings):
    """A table whose ratios, layer by layer, are exactly these float32."""
    made = RatioTable(len(values) // regions, regions, **settings)
    with torch.no_grad():
        made.ratios.copy_(torch.tensor(values, dtype=torch.float32).view(-1, regions))
    return made


def at(made, layer=0):
    """(small, large, weight of large, its derivative, nearest) of one layer in region 0."""
    (small,), (large,), weight = made.pair(layer, [0])
    (slope,) = torch.autograd.grad(weight.sum(), made.ratios)
    return small, large, weight.item(), slope[layer, 0].item(), made.nearest()[layer][0]


def test_a_fresh_table_keeps_everything():
    made = RatioTable(4, 3)
    assert list(made.state_dict()) == ["ratios"]
    assert made.ratios.dtype == torch.float32 and made.ratios.requires_grad
    assert made.host() == [[1.0] * 3] * 4 and made.nearest() == [[10] * 3] * 4
    assert RatioTable(2, start=0.7).nearest() == [[7], [7]]


@pytest.mark.parametrize("bins", [BINS, (10, 5, 0), (9, 2), (7, 3, 8)], ids=str)
def test_pairs_and_weights_are_the_reference_for_a_thousand_ratios(bins):
    low, high = min(bins) / 10, max(bins) / 10
    values = torch.linspace(low, high, 1001).clamp(low, high)
    made = table(*values.tolist(), bins=bins, start=high)
    for layer in range(0, 1001, 7):
        small, large, weight, slope, nearest = at(made, layer)
        a, b, w = bracketing_bins(values[layer].item(), bins)
        if 1e-6 < w < 1 - 1e-6:  # on a bin float32 is exact, and 0.6 in double is not 6 tenths
            assert (small, large) == (a, b)
        assert (large, small) in zip(made.bins, made.bins[1:], strict=False)
        kept = (1 - weight) * small + weight * large
        assert kept == pytest.approx(10 * values[layer].item(), abs=3e-6)
        assert slope == pytest.approx(10 / (large - small))
        assert nearest == snap_to_bins(values[layer].item(), bins)
        assert made.table_bins().weights[layer][0] == weight


@pytest.mark.parametrize("tenths", range(4, 11))
def test_on_a_bin_its_weight_is_exactly_one_and_the_derivative_points_down(tenths):
    assert at(table(tenths / 10)) == (tenths - 1, tenths, 1.0, 10.0, tenths)


def test_on_the_smallest_bin_the_derivative_points_up():
    assert at(table(0.3)) == (3, 4, 0.0, 10.0, 3)


@pytest.mark.parametrize(
    ("value", "bins"), [(1.007, (9, 10)), (0.29, (3, 4)), (-1.0, (3, 4)), (7.0, (9, 10))]
)
def test_outside_of_the_interval_the_gradient_lives_and_projection_brings_back(value, bins):
    made = table(value)
    small, large, weight, slope, _ = at(made)
    assert (small, large) == bins and weight == float(value > 1) and slope == 10
    assert torch.autograd.grad(made.mean(), made.ratios)[0].item() == 1
    assert made.dead() == 0
    made.project_()
    assert made.ratios.item() == (1.0 if value > 1 else pytest.approx(0.3))
    assert at(made)[2] == float(value > 1)


# paper_math 1.3: ratio -> pair (nearest, second nearest) and weights in tenths, by the authors' float32 rule
FAITHFUL = {
    1.0: (9, 10, 1.0, 10),
    0.9: (8, 9, 1.0, 9),
    0.8: (8, 9, 0.0, 8),
    0.7: (6, 7, 1.0, 7),
    0.6: (6, 7, 0.0, 6),
    0.5: (4, 5, 1.0, 5),
    0.4: (4, 5, 0.0, 4),
    0.3: (3, 4, 0.0, 3),
    0.95: (9, 10, 0.5, 10),
    0.85: (8, 9, 0.5, 9),
    0.65: (6, 7, 0.5, 6),
    0.55: (5, 6, 0.5, 6),
    0.45: (4, 5, 0.5, 4),
    0.35: (3, 4, 0.5, 3),
    0.88: (8, 9, 0.8, 9),
    0.29: (3, 4, -0.1, 3),
    0.2: (3, 4, -1.0, 3),
    0.1: (3, 4, -2.0, 3),
}


@pytest.mark.parametrize("value", FAITHFUL)
def test_faithful_pairs_are_the_two_nearest_candidates(value):
    small, large, weight, slope, nearest = at(table(value, mode="faithful"))
    assert (small, large, nearest) == (*FAITHFUL[value][:2], FAITHFUL[value][3])
    assert weight == pytest.approx(FAITHFUL[value][2], abs=1e-6) and slope == pytest.approx(10, rel=1e-6)
    if value in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        assert weight in (0.0, 1.0)


def test_faithful_weights_are_the_authors_formula_on_a_thousand_ratios():
    """w_a = (b - r) / (b - a) with a the nearest candidate and b the second nearest."""
    values = torch.linspace(0.05, 1.05, 1001)
    made, candidates = table(*values.tolist(), mode="faithful"), torch.arange(1, 0.2, -0.1)
    assert candidates.numel() == len(BINS)
    for layer, value in enumerate(values.clamp(0.1, 1.0)):
        near, second = (candidates - value).abs().topk(2, largest=False).indices.tolist()
        a, b = candidates[near], candidates[second]
        small, large, weight = made.pair(layer, [0])
        assert {small[0], large[0]} == {BINS[near], BINS[second]}
        nearest = (b - value) / (b - a)
        expected = nearest if near < second else 1 - nearest
        assert weight.item() == pytest.approx(expected.item(), abs=2e-6)


@pytest.mark.parametrize(("value", "dead"), [(1.0, 0), (0.1, 0), (1.0000001, 1), (0.0999, 1), (1.007, 1)])
def test_the_faithful_clamp_has_a_dead_zone_that_is_counted_and_not_left(value, dead):
    made = table(value, 0.5, mode="faithful")
    weight = made.pair(0, [0])[2]
    (slope,) = torch.autograd.grad(weight.sum() + made.mean(), made.ratios)
    assert (slope[0].item() == 0) == bool(dead) and made.dead() == dead
    made.project_()
    assert made.ratios[0].item() == torch.tensor(value).item()
    assert made.host()[0][0] == torch.tensor(value).clamp(0.1, 1).item()


def test_samples_in_different_regions_get_their_own_bins():
    made = table(0.95, 0.5, 0.32, 0.7, 0.4, 1.0, regions=3)
    small, large, weight = made.pair(0, [2, 0, 0, 1])
    assert (small, large) == ([3, 9, 9, 4], [4, 10, 10, 5])
    assert weight.tolist() == pytest.approx([0.2, 0.5, 0.5, 1.0], abs=1e-5)
    (slope,) = torch.autograd.grad((weight * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), made.ratios)
    assert slope.tolist() == [[50.0, 40.0, 10.0], [0.0, 0.0, 0.0]]
    assert made.pair(1, [1, 1])[2].tolist() == pytest.approx([1.0, 1.0])


def test_the_mean_weighs_regions_by_their_samples():
    made = table(0.9, 0.5, 0.7, 0.3, regions=2)
    assert made.mean().item() == pytest.approx(0.6)
    assert made.mean([0]).item() == pytest.approx(0.8)
    mean = made.mean([0, 0, 0, 1])
    assert mean.item() == pytest.approx(0.75 * 0.8 + 0.25 * 0.4)
    (slope,) = torch.autograd.grad(mean, made.ratios)
    assert torch.allclose(slope, torch.tensor([[0.375, 0.125]] * 2))


@pytest.fixture
def copies(monkeypatch):
    """How often a table's parameter went to the host."""
    made = []
    decide = RatioTable._decide
    monkeypatch.setattr(RatioTable, "_decide", lambda self, r: made.append(1) or decide(self, r))
    return made


def test_one_host_copy_after_each_change_of_the_parameter(copies):
    made = RatioTable(28, 4)
    for step in range(1, 4):
        weights = [made.pair(layer, [0, 3, 1])[2].sum() for layer in range(28)]
        made.nearest(), made.host(), made.dead(), made.mean([0, 3])
        assert len(copies) == step
        sum(weights).backward()
        with torch.no_grad():
            made.ratios -= 1e-3 * made.ratios.grad
        made.project_()


def test_writes_that_nothing_counts_are_seen_after_a_switch_or_a_refresh(copies):
    made = RatioTable(1)
    assert made.nearest() == [[10]]
    made.ratios.data.fill_(0.5)
    assert made.nearest() == [[10]]
    assert made.eval().nearest() == [[5]]
    made.ratios.data.fill_(0.4)
    made.invalidate()
    assert made.nearest() == [[4]] and len(copies) == 3


def test_a_copy_reads_its_own_parameter():
    made = table(0.5)
    made.nearest(), made.pair(0, [0])
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.ratios.fill_(0.8)
    assert (made.nearest(), other.nearest()) == ([[5]], [[8]])
    other.load_state_dict(made.state_dict())
    assert other.nearest() == [[5]]


def test_decisions_given_again_are_kept_though_the_ratio_has_moved():
    made = table(0.55)
    before = made.table_bins()
    with torch.no_grad():
        made.ratios.fill_(0.72)
    assert made.pair(0, [0])[:2] == ([7], [8])
    small, large, weight = made.pair(0, [0], before)
    assert (small, large) == ([5], [6]) and weight.item() == pytest.approx(0.5, abs=1e-5)
    assert torch.autograd.grad(weight.sum(), made.ratios)[0].item() == pytest.approx(10)


def test_the_table_stays_in_fp32_whatever_the_model_becomes():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), table(0.7001))
    for cast in (model.bfloat16, model.half, model.double):
        cast()
        assert model[1].ratios.dtype == torch.float32
        assert model[1].ratios.item() == torch.tensor(0.7001).item()
    assert model.to("meta")[1].ratios.device.type == "meta"


def test_the_blend_is_exact_with_the_weights_of_a_table():
    """Weight 1 and 0 on bins give that bin's block bit by bit."""
    x, weight = torch.randn(1, 10, 16), torch.randn(16)
    modulation = torch.randn(1, 6, 16)
    shapes = ((48, 16), (48,), (16, 16), (16,), (32, 16), (32,), (16, 32), (16,))
    arguments = modulation, *(0.2 * torch.randn(shape) for shape in shapes), 2
    for value in (1.0, 0.8, 0.3):
        made = table(value)
        small, large, blend = made.pair(0, [0])
        out = reference.two_bin_block(x, weight, small, large, blend, *arguments)
        assert torch.equal(out, reference.mod_block(x, weight, made.nearest()[0], *arguments))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"layers": 0}, "layers=0 must be a positive integer"),
        ({"regions": 0}, "regions=0 must be a positive integer"),
        ({"layers": 2.0}, "layers=2.0 must be"),
        ({"regions": True}, "regions=True must be"),
        ({"mode": "fast"}, "mode='fast' must be one of"),
        ({"bins": (10,)}, r"bins=\(10,\) must be two or more"),
        ({"bins": (10, 10)}, "must be two or more different ones"),
        ({"bins": (11, 3)}, "integers in 0..10"),
        ({"bins": (1.0, 0.3)}, "integers in 0..10"),
        ({"bins": 5}, "bins=5 must be kept tenths"),
        ({"bins": (10, 5), "mode": "faithful"}, r"bins=\(10, 5\) must be .* in the faithful mode"),
        ({"start": 1.2}, "start=1.2 must be a number in"),
        ({"start": 0.2}, "start=0.2 must be a number in"),
        ({"start": float("nan")}, "start=nan must be"),
        ({"start": "1"}, "start='1' must be"),
        ({"start": 1.0, "bins": (8, 3)}, "start=1.0 must be a number in"),
    ],
)
def test_bad_arguments_are_named(settings, text):
    with pytest.raises(ValueError, match=f"RatioTable: .*{text}"):
        RatioTable(**({"layers": 2} | settings))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_ratio_that_is_no_number_is_named(value):
    made = table(0.5, 0.6, value, 0.7, regions=2)
    with pytest.raises(ValueError, match=rf"RatioTable: ratios\[1, 0\] is {value}"):
        made.pair(0, [0])
