import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from diffratio.adapter_file import RATIOS, WEIGHTS_NAME, read_weights
from diffratio.data.digits import load_split, make_class_tokens
from diffratio.demo import train
from diffratio.demo.model import ASSETS, build_model, load_model
from diffratio.evaluation.target import load_target
from diffratio.models import noise_schedule
from diffratio.models.pretrain import Recipe, fit, v_mse


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / train.LOG_FILE).read_text().splitlines()]


def test_the_command_trains_logs_and_repeats_itself(tmp_path: Path):
    weights = []
    for name in ("first", "second"):
        arguments = ["dense", "--seed", "7", "--steps", "2", "--out", str(tmp_path / name), "--json"]
        result = CliRunner().invoke(train.app, arguments)
        assert result.exit_code == 0, result.output
        weights.append(load_model(tmp_path / name)[0].state_dict())
        header, start, last, end = _lines(tmp_path / name)
        assert header["recipe"]["seed"] == 7 and header["recipe"]["steps"] == 2
        assert header["versions"]["torch"] == torch.__version__
        assert start["step"] == 0 and last["step"] == 2 and end["finished"]
        assert '"v_mse"' in result.stdout
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_training_lowers_the_loss_and_keeps_the_average():
    model, tokens = build_model(0), make_class_tokens(0)
    before = train.validate(model, tokens)
    recipe = Recipe(seed=0, steps=8, learning_rate=1e-3, batch=32)
    fit(
        model, train.draw_digits(tokens, 0.1), lambda: train.validate(model, tokens), recipe, lambda **_: None
    )
    assert not model.training
    assert train.validate(model, tokens) < before


def test_the_loss_is_the_error_of_the_velocity():
    images = load_split("train")[0][:4]
    noise, timesteps = torch.randn(images.shape), torch.tensor([0, 300, 600, 999])
    tokens = make_class_tokens(0)[:4]
    loss = v_mse(build_model(0), noise_schedule(), images, tokens, timesteps, noise)
    target = noise_schedule().get_velocity(images, noise, timesteps)
    torch.testing.assert_close(loss, target.square().mean())  # the untrained model predicts zero


def test_the_shipped_log_tells_how_the_dense_model_was_made():
    header, *lines, end = _lines(ASSETS / "dense")
    model, tokens = load_model(ASSETS / "dense")
    assert header["parameters"] == sum(p.numel() for p in model.parameters())
    assert lines[-1]["step"] == header["recipe"]["steps"] and end["finished"]
    assert abs(train.validate(model, tokens) - lines[-1]["v_mse"]) < 1e-3


def test_the_shipped_log_tells_how_the_sparse_model_was_made():
    header, *lines, end = _lines(ASSETS / "lt30")
    assert header["arguments"] == header["arguments"] | train.LEARNED
    model = load_target(ASSETS / "lt30").model
    ratios = read_weights(ASSETS / "lt30" / WEIGHTS_NAME)[RATIOS]
    parameters = sum(p.numel() for p in model.parameters()) + ratios.numel()
    assert header["parameters"] == {"total": parameters, "trained": parameters}
    last = [line for line in lines if "ratios" in line][-1]
    assert last["step"] == lines[-1]["step"] == header["arguments"]["max_train_steps"]
    torch.testing.assert_close(torch.tensor(last["ratios"]), ratios, atol=1e-4, rtol=0)
    assert abs(train.validate(model, make_class_tokens(0)) - end["v_mse"]) < 1e-3


def test_a_thinned_log_keeps_validations_means_and_the_last_step():
    steps = [{"step": s, "loss": float(s), "mean_ratio": 0.7, "target": 0.7} for s in range(1, 46)]
    log = [{"step": 0, "validation_loss": 1.0}, *steps, {"step": 45, "validation_loss": 0.5}]
    ratios = [{"step": s, "ratios": [[s / 100, 0.123456]]} for s in range(1, 46)]
    first, *lines, last = train.thinned(log, ratios)
    assert (first, last) == (log[0], log[-1])
    assert [(line["step"], line["loss"]) for line in lines] == [(20, 10.5), (40, 30.5), (45, 43.0)]
    assert [line["ratios"] for line in lines] == [[[s / 100, 0.1235]] for s in (20, 40, 45)]


def test_the_sparse_model_comes_from_a_run_of_the_trainer(tmp_path: Path):
    arguments = ["lt", "--steps", "2", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "first")]
    assert CliRunner().invoke(train.app, arguments).exit_code == 0
    header, start, steps, validation, end = _lines(tmp_path / "first")
    assert header["arguments"]["max_train_steps"] == steps["step"] == 2
    assert steps["mean_ratio"] == pytest.approx(steps["target"])
    assert start["validation_loss"] != validation["validation_loss"] and end["finished"]
    model = load_target(tmp_path / "first").model
    assert abs(train.validate(model, make_class_tokens(0)) - end["v_mse"]) < 1e-3
    # A run that has ended has nothing left to train.
    arguments[-1] = str(tmp_path / "second")
    assert CliRunner().invoke(train.app, arguments).exit_code == 0
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(path.name for path in (ASSETS / "lt30").iterdir())
    for name in set(files) - {train.LOG_FILE}:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
