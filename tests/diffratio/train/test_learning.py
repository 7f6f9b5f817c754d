"""A short run on the digits model reaches its target and learns."""

import pytest

from diffratio.routing.find import routed_layers
from diffratio.train import TrainArguments, load_run, train


@pytest.mark.parametrize(("method", "target"), [pytest.param("l", 0.2, marks=pytest.mark.fuzz), ("lt", 0.3)])
def test_150_steps_on_the_digits_reach_the_target(method, target, runs, tmp_path):
    arguments = TrainArguments(
        output_dir=str(tmp_path),
        method=method,
        target_compression=target,
        max_train_steps=150,
        train_batch_size=2,
        train_mode="full",
        learning_rate=3e-4,
        validation_steps=150,
        checkpointing_steps=150,
        report_to="none",
    )
    run = train(arguments, progress=False)
    steps = [line for line in runs.lines(tmp_path) if "loss" in line]
    assert abs(steps[-1]["mean_ratio"] - (1 - target)) < 0.01
    assert steps[0]["mean_ratio"] > 0.98
    ratios = runs.lines(tmp_path, "ratios.jsonl")[-1]["ratios"]
    assert len(ratios) == 5 and {len(row) for row in ratios} == {arguments.regions}
    assert max(map(max, ratios)) - min(map(min, ratios)) > 0.05
    assert run["validation_loss"] < 0.5
    model, _ = load_run(tmp_path)
    kept = [layer.kept for layer in routed_layers(model)]
    assert abs(sum(map(sum, kept)) / sum(map(len, kept)) / 10 - (1 - target)) < 0.05
