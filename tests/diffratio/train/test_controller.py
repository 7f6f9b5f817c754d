"""RatioController: the mean lands on its target for gradients of every size, and needs part the layers."""

import itertools
import json
import math
import warnings

import pytest
import torch
from diffusers import DiTTransformer2DModel

from diffratio import apply_diffratio, learn_ratios
from diffratio.train.controller import RatioController, _balance, ratio_learning_rate
from diffratio_kernels.blocks.ratio_table import RatioTable


class Adam:
    """On one tensor, as torch's (whose import of its compiler takes longer than these tests)."""

    def __init__(self, parameter, lr):
        self.parameter, self.lr, self.steps = parameter, lr, 0
        self.mean, self.square = torch.zeros_like(parameter), torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self):
        self.steps += 1
        gradient = self.parameter.grad
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        size = (self.square / (1 - 0.999**self.steps)).sqrt() + 1e-8
        self.parameter -= self.lr / (1 - 0.9**self.steps) * self.mean / size


class Simulation:
    """Layers whose loss is need * (1 - ratio)^2: -dL/dr grows from 0 as the ratio falls, below noise that is
    1.6 times as large at a ratio of 0.7; each step's batch of 8 reaches some of the regions."""

    def __init__(self, layers, regions, target, steps, needs, seed=0, lr=None, **settings):
        self.generator = torch.Generator().manual_seed(seed)
        self.table = RatioTable(layers, regions)
        self.needs = needs
        self.controller = RatioController(self.table, target, steps, **settings)
        self.adam = Adam(self.table.ratios, ratio_learning_rate(target, steps) if lr is None else lr)
        self.means = []

    def run(self, steps):
        layers, regions = self.table.ratios.shape
        for _ in range(steps):
            reached = torch.randint(0, regions, (8,), generator=self.generator)
            share = torch.bincount(reached, minlength=regions) / 8
            worth = 2 * self.needs * (1 - self.table.ratios.detach())
            noise = torch.randn(layers, regions, generator=self.generator) * self.needs
            self.table.ratios.grad = -(worth + noise) * share
            self.controller.before_step()
            self.adam.step()
            self.controller.after_step()
            self.means.append(self.table.ratios.mean().item())
        return self


def mixed(layers, regions, low=1e-5, high=1e-1):
    """Needs of all sizes between two, in a fixed disorder."""
    generator = torch.Generator().manual_seed(layers * regions)
    spread = torch.linspace(math.log(low), math.log(high), layers * regions).exp()
    return spread[torch.randperm(layers * regions, generator=generator)].view(layers, regions)


SHAPES = list(itertools.product((4, 6, 28), (1, 4, 10)))
SIZES = [(1e-5, 1e-1), (1e-5, 1e-4), (1e-2, 1e-1), (1e-4, 1e-2)]
CASES = [
    (layers, regions, (0.2, 0.3, 0.5)[i % 3], 200, *SIZES[i % 4])
    for i, (layers, regions) in enumerate(SHAPES)
] + [(6, 1, 0.3, 2000, 1e-5, 1e-1), (4, 4, 0.5, 700, 1e-3, 1e-1)]


@pytest.mark.parametrize(("layers", "regions", "target", "steps", "low", "high"), CASES)
def test_the_mean_lands_on_the_target_and_needs_decide(layers, regions, target, steps, low, high):
    needs = mixed(layers, regions, low, high)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulation = Simulation(layers, regions, target, steps, needs).run(steps)
    means = torch.tensor(simulation.means)
    assert abs(means[-1] - (1 - target)) < 1e-4
    assert means.min() > 1 - target - 1e-4
    assert (means.diff() < 1e-4).all(), "the ramp never turns back"
    assert means[steps // 10] > 1 - target / 3, "and it is no jump"
    ratios = simulation.table.ratios.detach().flatten()
    order, third = needs.flatten().argsort(), max(1, len(ratios) // 3)
    assert ratios[order[-third:]].mean() > ratios[order[:third]].mean() + 0.05
    cost = (needs.flatten() * (1 - ratios).square()).sum()
    assert cost < 0.85 * (needs * target**2).sum(), "better than the same ratio everywhere"


def said(simulation, steps) -> list[str]:
    """What the controller warns of in that many steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        simulation.run(steps)
    assert {warning.filename for warning in caught} <= {__file__}, (
        "it points at the loop, not into the package"
    )
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("regions", [1, 4])
def test_ratios_at_the_rate_of_weights_end_uniform_and_that_is_said_once(regions):
    simulation = Simulation(12, regions, 0.3, 100, mixed(12, regions), lr=1e-4)
    assert said(simulation, 49) == []
    [text] = said(simulation, 51)
    assert "after 50 of 100 steps all ratios lie within 0.0" in text and "uniform MoD" in text
    assert "parameter_groups(model, ratio_learning_rate=0.012, ...)" in text
    assert {tenths for row in simulation.table.nearest() for tenths in row} == {7}


def test_a_table_that_is_uniform_at_the_end_alone_is_named_there():
    simulation = Simulation(12, 4, 0.3, 100, mixed(12, 4))
    assert said(simulation, 99) == []
    with torch.no_grad():
        simulation.table.ratios.fill_(0.7)
        simulation.controller._settled.fill_(0.7)
    [text] = said(simulation, 1)
    assert "after 100 of 100 steps all ratios lie within 0.000" in text


@pytest.mark.parametrize("settings", [{}, {"weight": 0.3}])
@pytest.mark.parametrize(("steps", "when"), [(100, 10), (4, 4)])
def test_ratios_that_no_optimizer_has_are_named_once(settings, steps, when):
    simulation = Simulation(6, 4, 0.3, steps, mixed(6, 4), **settings)
    simulation.adam.step = lambda: None
    assert said(simulation, when - 1) == []
    [text] = said(simulation, steps - when + 1)
    assert f"no optimizer has changed the ratios in {when} steps" in text and "after learn_ratios" in text


def test_steps_that_a_loss_scaler_skips_are_no_missing_optimizer():
    simulation = Simulation(6, 4, 0.3, 100, mixed(6, 4))
    step, skipped = simulation.adam.step, iter(range(9))
    simulation.adam.step = lambda: step() if next(skipped, None) is None else None
    assert said(simulation, 100) == []


@pytest.mark.parametrize(("layers", "regions", "target"), [(1, 1, 0.3), (6, 4, 0.0), (6, 4, 0.7)])
def test_a_table_that_can_only_be_uniform_is_no_fault(layers, regions, target):
    assert said(Simulation(layers, regions, target, 20, mixed(layers, regions), lr=1e-3), 20) == []


def test_a_resumed_controller_looks_for_an_optimizer_again():
    first = Simulation(6, 4, 0.3, 100, mixed(6, 4)).run(60)
    second = Simulation(6, 4, 0.3, 100, mixed(6, 4))
    with torch.no_grad():
        second.table.ratios.copy_(first.table.ratios)
    second.controller.load_state_dict(first.controller.state_dict())
    second.adam.step = lambda: None
    [text] = said(second, 10)
    assert "no optimizer has changed the ratios in 10 steps" in text


def test_the_controller_follows_a_table_that_moves():
    table = RatioTable(3, 2)
    controller = RatioController(table, 0.3, 10)
    table.to("meta")
    table.ratios.grad = torch.empty_like(table.ratios)
    controller.before_step()
    assert table.ratios.grad.is_meta and math.isfinite(controller.learning_rate)


@pytest.mark.filterwarnings("ignore:RatioController")
@pytest.mark.parametrize("lr", [1e-4, 3e-2])
def test_the_target_does_not_depend_on_the_learning_rate(lr):
    simulation = Simulation(6, 4, 0.3, 200, mixed(6, 4), lr=lr).run(200)
    assert abs(simulation.means[-1] - 0.7) < 1e-4 and min(simulation.means) > 0.6999


def test_the_size_of_the_loss_does_not_matter():
    """A loss a thousand times larger, by a power of two, gives the same table but for Adam's epsilon."""
    needs = mixed(6, 4, 1e-2, 1e-1)
    one, other = (Simulation(6, 4, 0.3, 200, needs * scale).run(100) for scale in (1, 1024))
    assert torch.allclose(one.table.ratios, other.table.ratios, atol=1e-3)
    assert other.controller.weight == pytest.approx(1024 * one.controller.weight, rel=0.05)


def test_the_projection_is_to_the_nearest_table_with_that_mean():
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        table = RatioTable(7, 3)
        controller = RatioController(table, 0.4, 10, ramp=0.0)
        with torch.no_grad():
            table.ratios.copy_(0.1 + 1.1 * torch.rand(7, 3, generator=generator))
        before = table.ratios.detach().clamp(0.3, 1.0).double()
        low, high = -1.0, 1.0
        for _ in range(60):
            shift = (low + high) / 2
            low, high = (shift, high) if (before + shift).clamp(0.3, 1).mean() < 0.6 else (low, shift)
        controller.after_step()
        assert table.ratios.mean().item() == pytest.approx(0.6, abs=1e-5)
        assert torch.allclose(table.ratios.double(), (before + shift).clamp(0.3, 1), atol=1e-4)


def test_the_price_lets_as_many_rise_as_fall():
    worth = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])
    yes = torch.ones(5, dtype=torch.bool)
    assert _balance(worth, yes, yes) == 3.0
    at_the_top = torch.tensor(
        [True, False, False, False, True]
    )  # 5 and 4 keep everything: they can only fall
    assert _balance(worth, yes, ~at_the_top) == 2.0
    at_the_bottom = torch.tensor([False, True, False, True, False])
    assert _balance(worth, ~at_the_bottom, yes) == 4.0


def test_a_region_that_a_batch_did_not_reach_gets_no_price():
    table = RatioTable(3, 2, start=0.5)
    controller = RatioController(table, 0.5, 100)
    table.ratios.grad = -torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    controller.before_step()
    assert table.ratios.grad.tolist() == [[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]


@pytest.mark.parametrize("stop", [37, 90])
def test_a_resumed_controller_takes_the_same_steps_in_bits(stop):
    straight = Simulation(5, 4, 0.3, 100, mixed(5, 4)).run(100)
    first = Simulation(5, 4, 0.3, 100, mixed(5, 4)).run(stop)
    state = json.loads(json.dumps(first.controller.state_dict()))
    second = Simulation(5, 4, 0.3, 100, mixed(5, 4))
    with torch.no_grad():
        second.table.ratios.copy_(first.table.ratios)
    second.adam.mean, second.adam.square, second.adam.steps = first.adam.mean, first.adam.square, stop
    second.generator = first.generator
    second.controller.load_state_dict(state)
    second.run(100 - stop)
    assert torch.equal(second.table.ratios, straight.table.ratios)
    assert first.means + second.means == straight.means
    assert second.controller.state_dict() == straight.controller.state_dict()


@pytest.mark.parametrize("stop", [20, 60, 90])
def test_a_ramp_never_goes_back_when_a_run_is_made_longer(stop):
    """Stopped on the ramp, after it, and when the ratios are settled."""
    first = Simulation(5, 4, 0.3, 100, mixed(5, 4)).run(stop)
    longer = Simulation(5, 4, 0.3, 300, mixed(5, 4))
    with torch.no_grad():
        longer.table.ratios.copy_(first.table.ratios)
    longer.controller.load_state_dict(json.loads(json.dumps(first.controller.state_dict())))
    targets = [first.controller.target]
    for _ in range(stop, 300):
        longer.run(1)
        targets.append(longer.controller.target)
    assert all(after <= before for before, after in itertools.pairwise(targets))
    assert max(longer.means) < first.means[-1] + 1e-4 and targets[-1] == pytest.approx(0.7)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("price"),
        lambda s: s.pop("target"),
        lambda s: s.update(other=1),
        lambda s: s.update(step="x"),
        lambda s: s.update(target="x"),
        lambda s: s.update(price=[1.0]),
        lambda s: s.update(gradient=[[1.0]]),
        lambda s: s.update(gradient="abc"),
        lambda s: s.update(present=[1.0] * 5),
        lambda s: s.update(settled=[[1.0]]),
        lambda s: s.update(settled="abc"),
    ],
)
def test_another_state_is_refused_and_nothing_changes(change):
    controller = RatioController(RatioTable(3, 2), 0.3, 10)
    state = controller.state_dict()
    before = json.dumps(state)
    change(state)
    with pytest.raises(ValueError, match=r"^state "):
        controller.load_state_dict(state)
    assert json.dumps(controller.state_dict()) == before


@pytest.fixture
def model():
    return apply_diffratio(DiTTransformer2DModel(2, 16, num_layers=3, sample_size=8, num_embeds_ada_norm=10))


@pytest.mark.parametrize(("mode", "weight"), [("default", 3.0), ("faithful", None), ("faithful", 0.5)])
def test_a_weight_is_the_papers_penalty_alone(model, mode, weight):
    """No price, no ramp, no shift of the mean; the gap that stays is L g / (2 weight)."""
    table = learn_ratios(model, mode=mode, start=0.95)
    controller = RatioController(table, 0.3, 100, weight=weight)
    used = 0.3 if weight is None else weight
    assert controller.weight == used and controller.target == pytest.approx(0.7)
    controller.loss(model).backward()
    expected = 2 * used * (0.95 - 0.7) / 3
    assert table.ratios.grad.flatten().tolist() == pytest.approx([expected] * 3)
    before = table.ratios.grad.clone()
    controller.before_step()
    assert torch.equal(table.ratios.grad, before)
    with torch.no_grad():
        table.ratios[0] = 1.2
    controller.after_step()
    assert table.ratios.flatten().tolist() == pytest.approx([1.0 if mode == "default" else 1.2, 0.95, 0.95])
    worth = 0.02  # per layer: descending the sum of both losses
    for _ in range(400):
        gap = table.mean().item() - 0.7
        with torch.no_grad():
            table.ratios -= 0.5 * (2 * used * gap / 3 - worth)
    assert table.mean().item() - 0.7 == pytest.approx(min(3 * worth / (2 * used), 0.3), abs=1e-3)


def test_a_constraint_adds_nothing_to_the_loss(model):
    controller = RatioController(learn_ratios(model), 0.3, 100)
    loss = controller.loss(model)
    assert loss.item() == 0 and loss.shape == () and not loss.requires_grad
    controller.before_step()
    assert model.diffratio_ratios.ratios.grad is None


@pytest.mark.parametrize(
    ("layers", "regions", "target"), [(6, 1, 0.3), (5, 4, 0.2), (7, 3, 0.25), (28, 1, 0.5)]
)
def test_at_the_end_the_ratios_stand_on_bins_with_that_mean(layers, regions, target):
    steps = 100
    simulation = Simulation(layers, regions, target, steps, mixed(layers, regions)).run(79)
    before = simulation.table.ratios.detach().clone()
    assert not torch.equal(before, before.mul(10).round() / 10)
    simulation.run(1)
    settled = simulation.table.ratios.detach().clone()
    tenths = settled.mul(10).round()
    assert torch.equal(settled, tenths / 10) and simulation.table.nearest() == tenths.long().tolist()
    assert (settled - before).abs().max() <= 0.1 + 2 * simulation.adam.lr
    assert abs(settled.mean().item() - (1 - target)) <= 0.05 / (layers * regions) + 1e-6
    assert torch.equal(simulation.run(20).table.ratios, settled)


def test_ratios_nearest_to_their_larger_bin_take_it():
    table = RatioTable(4)
    table.ratios.data = torch.tensor([[0.79], [0.71], [0.75], [0.94]])
    assert table.settled(0.8).flatten().tolist() == pytest.approx([0.8, 0.7, 0.8, 0.9])
    assert table.settled(1.0).flatten().tolist() == pytest.approx([0.8, 0.8, 0.8, 1.0])
    assert table.settled(0.0).flatten().tolist() == pytest.approx([0.7, 0.7, 0.7, 0.9])


@pytest.mark.filterwarnings("ignore:RatioController")  # there is no optimizer
def test_a_table_that_starts_below_the_target_rises_to_it():
    table = RatioTable(4, start=0.5)
    controller = RatioController(table, 0.2, 10, ramp=1.0, settle=0.0)
    for step in range(1, 11):
        controller.after_step()
        assert table.ratios.mean().item() == pytest.approx(0.5 + 0.03 * step, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"target_compression": 0.8}, r"target_compression=0.8 must be in 0.0..0.7"),
        ({"target_compression": -0.1}, "target_compression=-0.1"),
        ({"target_compression": float("nan")}, "target_compression=nan"),
        ({"target_compression": "0.3"}, "target_compression='0.3'"),
        ({"steps": 0}, "steps=0 must be a positive integer"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"weight": -1}, "weight=-1 must be a number from 0"),
        ({"weight": float("inf")}, "weight=inf"),
        ({"ramp": 1.5}, "ramp=1.5 must be in 0..1"),
        ({"settle": 0.7}, "settle=0.7 must be in 0..0.6, what ramp=0.4 leaves"),
        ({"settle": float("nan")}, "settle=nan"),
    ],
)
def test_bad_arguments_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        RatioController(RatioTable(2), **({"target_compression": 0.3, "steps": 10} | settings))


def test_another_object_than_a_table_is_named():
    with pytest.raises(TypeError, match="table must be a RatioTable, which learn_ratios returns, got Linear"):
        RatioController(torch.nn.Linear(2, 2), 0.3, 10)
