"""How the models that ship are stored, and how the sparse one was made."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from diffratio.data import load_dataset
from diffratio.diffusion.prediction import prediction_error
from diffratio.evaluation.target import load_target
from diffratio.routing.adapter_file import RATIOS, WEIGHTS_NAME, read_weights
from diffratio.toy import DIGITS_LT30, load_pixart
from tools import toy_weights
from tools.toy_pretrain import LOG_FILE, small_pixart


def call(*arguments):
    result = CliRunner().invoke(toy_weights.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def loss(folder: Path) -> float:
    return prediction_error(load_target(folder).model, load_dataset("digits", split="held_out")).overall


def test_a_stored_model_comes_back_rounded_to_fp16(tmp_path: Path):
    small_pixart(load_dataset("digits"), 3, layers=1, heads=1).save_pretrained(tmp_path / "exact")
    exact = load_pixart(tmp_path / "exact")
    exact.save_pretrained(tmp_path / "second")  # tells where it came from
    call("model", tmp_path / "second", tmp_path / "stored")
    for (name, stored), weight in zip(
        load_pixart(tmp_path / "stored").state_dict().items(), exact.state_dict().values(), strict=True
    ):
        assert torch.equal(stored, weight.half().float()), name
    assert str(tmp_path) not in (tmp_path / "stored" / "config.json").read_text()
    digest = sha256((tmp_path / "second" / toy_weights.WEIGHTS).read_bytes()).hexdigest()
    assert (tmp_path / "stored" / toy_weights.DIGEST).read_text() == digest


def test_the_shipped_log_tells_how_the_sparse_model_was_made():
    header, *steps, end = lines(DIGITS_LT30)
    assert header["arguments"] == header["arguments"] | toy_weights.LEARNED
    model = load_target(DIGITS_LT30).model
    ratios = read_weights(DIGITS_LT30 / WEIGHTS_NAME)[RATIOS]
    parameters = sum(p.numel() for p in model.parameters()) + ratios.numel()
    assert header["parameters"] == {"total": parameters, "trained": parameters}
    last = [line for line in steps if "ratios" in line][-1]
    assert last["step"] == steps[-1]["step"] == header["arguments"]["max_train_steps"]
    torch.testing.assert_close(torch.tensor(last["ratios"]), ratios, atol=1e-4, rtol=0)
    assert abs(loss(DIGITS_LT30) - end["v_mse"]) < 1e-3


def test_a_thinned_log_keeps_validations_means_and_the_last_step():
    steps = [{"step": s, "loss": float(s), "mean_ratio": 0.7, "target": 0.7} for s in range(1, 46)]
    log = [{"step": 0, "validation_loss": 1.0}, *steps, {"step": 45, "validation_loss": 0.5}]
    ratios = [{"step": s, "ratios": [[s / 100, 0.123456]]} for s in range(1, 46)]
    first, *lines, last = toy_weights.thinned(log, ratios)
    assert (first, last) == (log[0], log[-1])
    assert [(line["step"], line["loss"]) for line in lines] == [(20, 10.5), (40, 30.5), (45, 43.0)]
    assert [line["ratios"] for line in lines] == [[[s / 100, 0.1235]] for s in (20, 40, 45)]


def test_the_sparse_model_comes_from_a_run_of_the_trainer(tmp_path: Path):
    arguments = ["lt30", "--steps", "2", "--run", tmp_path / "run", "--out", tmp_path / "first"]
    call(*arguments)
    header, start, steps, validation, end = lines(tmp_path / "first")
    assert header["arguments"]["max_train_steps"] == steps["step"] == 2
    assert steps["mean_ratio"] == pytest.approx(steps["target"])
    assert start["validation_loss"] != validation["validation_loss"] and end["finished"]
    assert abs(loss(tmp_path / "first") - end["v_mse"]) < 1e-3
    # A run that has ended has nothing left to train.
    arguments[-1] = tmp_path / "second"
    call(*arguments)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(path.name for path in DIGITS_LT30.iterdir())
    for name in set(files) - {LOG_FILE}:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
