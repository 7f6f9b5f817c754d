"""Uniform compression that grows as learned compression does."""

import pytest

from diffratio import DiffRatioConfig, learn_ratios
from diffratio.routing.apply import route_blocks
from diffratio.routing.find import routed_layers
from diffratio.train import Trainer, load_run
from diffratio.train.ramp import RatioRamp

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
