"""Uniform compression that grows as learned compression does."""

import pytest

from diffratio import DiffRatioConfig, learn_ratios
from diffratio.routing.apply import route_blocks
from diffratio.routing.find import routed_layers
from diffratio.train import Trainer, load_run
from diffratio.train.model import add_routing
from diffratio.train.ramp import RatioRamp, make_controller

MOD = {"method": "mod", "target_compression": 0.2, "ramp": 0.5}


def test_compression_grows_evenly_and_then_stays(tiny, runs, tmp_path):
    run = tiny.train(tmp_path, **MOD, dense_regions=1, num_regions=4)
    rows = [line["ratios"] for line in runs.lines(tmp_path, "ratios.jsonl")]
    final = [1.0, 0.8, 0.7, 0.7]
    for step, table in enumerate(rows, start=1):
        share = min(1, step / 3)  # half of six steps
        for row in table:
            assert row == pytest.approx([1 - share * (1 - kept) for kept in final], abs=1e-6)
    assert run["ratios"] == rows[-1] and rows[2] == rows[-1]
    steps = [line for line in runs.lines(tmp_path) if "loss" in line]
    assert [line["target"] for line in steps] == pytest.approx([line["mean_ratio"] for line in steps])
    assert [layer.kept for layer in routed_layers(load_run(tmp_path)[0])] == [[10, 8, 7, 7]] * 3


@pytest.mark.parametrize(("ramp", "reached"), [(None, 40), (0.1, 10)])
def test_a_learned_ratio_s_ramp_can_be_chosen(ramp, reached, tiny, tmp_path):
    arguments = tiny.arguments(tmp_path, method="lt", target_compression=0.2, ramp=ramp, max_train_steps=100)
    model = tiny.make("pixart")
    add_routing(model, arguments)
    controller, targets = make_controller(model, arguments), []
    for controller.step in (reached - 1, reached):
        targets.append(controller.target)
    assert targets[0] > targets[1] == pytest.approx(0.8)


def test_no_ratio_is_trained(tiny, tmp_path):
    one = Trainer(tiny.arguments(tmp_path, **MOD), progress=False)
    assert {group["name"] for group in one.optimizer.param_groups} == {"weights", "routers"}
    one.fit()
    assert one.state.controller.table.ratios.grad is None


def test_dense_regions_need_no_ramp(tiny, tmp_path):
    tiny.train(tmp_path, method="mod", target_compression=0.3, dense_regions=1, num_regions=4)
    assert [layer.kept for layer in routed_layers(load_run(tmp_path)[0])] == [[10, 6, 6, 6]] * 3
    assert (tmp_path / "ratios.jsonl").read_text() == ""


def test_a_longer_ramp_does_not_turn_back(tiny):
    model = route_blocks(tiny.make("pixart"), DiffRatioConfig(0.5))
    learn_ratios(model).requires_grad_(False)
    short, long = RatioRamp(model, steps=10), RatioRamp(model, steps=100)
    for _ in range(4):
        short.after_step()
    assert short.target == 0.5
    long.load_state_dict(short.state_dict())
    long.after_step()
    assert long.target == 0.5 and model.diffratio_ratios.ratios.mean().item() == 0.5
