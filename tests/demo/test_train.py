import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from diffratio import load_diffratio
from diffratio.data.digits import load_split, make_class_tokens
from diffratio.demo import train
from diffratio.demo.model import ASSETS, build_model, load_model
from diffratio.models import noise_schedule
from diffratio.models.pretrain import Recipe, fit, velocity_loss


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
        assert '"held_out_loss"' in result.stdout
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_training_lowers_the_loss_and_keeps_the_average():
    model, tokens = build_model(0), make_class_tokens(0)
    before = train.validate(model, tokens)
    recipe = Recipe(seed=0, steps=12, learning_rate=1e-3, batch=32)
    fit(
        model, train.draw_digits(tokens, 0.1), lambda: train.validate(model, tokens), recipe, lambda **_: None
    )
    assert not model.training
    assert train.validate(model, tokens) < before


def test_the_loss_is_the_error_of_the_velocity():
    images = load_split("train")[0][:4]
    noise, timesteps = torch.randn(images.shape), torch.tensor([0, 300, 600, 999])
    tokens = make_class_tokens(0)[:4]
    loss = velocity_loss(build_model(0), noise_schedule(), images, tokens, timesteps, noise)
    target = noise_schedule().get_velocity(images, noise, timesteps)
    torch.testing.assert_close(loss, target.square().mean())  # the untrained model predicts zero


@pytest.mark.parametrize("name", ["dense", "mod30"])
def test_the_shipped_log_tells_how_the_model_was_made(name: str):
    header, *lines, end = _lines(ASSETS / name)
    model, tokens = load_model(ASSETS / name)
    if name == "mod30":
        load_diffratio(model, ASSETS / name)
    assert header["parameters"] == sum(p.numel() for p in model.parameters())
    assert lines[-1]["step"] == header["recipe"]["steps"] and end["finished"]
    assert abs(train.validate(model, tokens) - lines[-1]["held_out_loss"]) < 1e-3


def test_fine_tuning_saves_plain_weights_and_an_adapter(tmp_path: Path):
    result = CliRunner().invoke(train.app, ["mod", "--steps", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    model, tokens = load_model(tmp_path)
    assert not any("diffratio" in name for name in model.state_dict())
    routed = load_diffratio(model, tmp_path)
    header, start, last, _ = _lines(tmp_path)
    assert header["model"] == "uniform MoD, compression 0.3"
    assert last["held_out_loss"] < start["held_out_loss"]
    assert abs(train.validate(routed, tokens) - last["held_out_loss"]) < 1e-3
