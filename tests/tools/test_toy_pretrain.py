"""Pretraining of the small models, and the logs of those that ship."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from typer import Typer
from typer.testing import CliRunner

from diffratio.data import load_dataset
from diffratio.data.digits import load_split
from diffratio.diffusion import noise_schedule
from diffratio.diffusion.prediction import prediction_error
from diffratio.toy import PRETRAINED, load_pixart
from tools.toy_pretrain import LAYERS, LOG_FILE, Recipe, augment, draw, fit, main, small_pixart, v_mse


def pretrain(*arguments):
    app = Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_dropped_text_is_the_null_text(name):
    dataset = load_dataset(name)
    images, tokens = draw(dataset, 64, 0.5, torch.Generator().manual_seed(0))
    null = (tokens == dataset.null_tokens).flatten(1).all(1)
    assert 16 < null.sum() < 48
    assert images.shape == (64, dataset.channels, dataset.size, dataset.size)
    again, _ = draw(dataset, 64, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_the_loss_is_the_error_of_the_velocity():
    batch = load_dataset("digits").batch(range(4))
    images, noise = batch["pixel_values"], torch.randn(4, 1, 8, 8)
    timesteps = torch.tensor([0, 300, 600, 999])
    model = small_pixart(load_dataset("digits"), 0)
    loss = v_mse(model, noise_schedule(), images, batch["tokens"], timesteps, noise)
    target = noise_schedule().get_velocity(images, noise, timesteps)
    torch.testing.assert_close(loss, target.square().mean())  # the untrained model predicts zero


def test_training_lowers_the_loss_and_keeps_the_average():
    digits, held_out = load_dataset("digits"), load_dataset("digits", split="held_out")
    model, log = small_pixart(digits, 0, layers=5), []
    before = prediction_error(model, held_out).overall
    fit(model, digits, Recipe(seed=0, steps=8, learning_rate=1e-3, batch=32), lambda **line: log.append(line))
    assert not model.training
    after = prediction_error(model, held_out).overall
    assert after < before
    assert [line["v_mse"] for line in (log[0], log[-1])] == [round(before, 5), round(after, 5)]


def test_a_seed_repeats_a_training(tmp_path: Path):
    weights = []
    for name in ("first", "second"):
        result = pretrain("digits", tmp_path / name, "--seed", 7, "--steps", 2, "--batch", 8)
        assert result.exit_code == 0, result.output
        header, *_ = map(json.loads, (tmp_path / name / LOG_FILE).read_text().splitlines())
        assert header["recipe"]["seed"] == 7 and header["recipe"]["steps"] == 2
        assert header["versions"]["torch"] == torch.__version__
        weights.append(load_pixart(tmp_path / name).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_pretraining_writes_a_model_that_repeats_its_log(tmp_path: Path, monkeypatch):
    few = partial(prediction_error, samples=16)
    monkeypatch.setattr("tools.toy_pretrain.prediction_error", few)
    result = pretrain("shapes", "--steps", 1, "--batch", 4, tmp_path, "--json")
    assert result.exit_code == 0, result.output
    header, start, last, end = map(json.loads, (tmp_path / LOG_FILE).read_text().splitlines())
    assert header["recipe"]["batch"] == 4 and header["model"] == "shapes" and end["finished"]
    assert last["step"] == 1 and last["v_mse"] < start["v_mse"]
    error = few(load_pixart(tmp_path), load_dataset("shapes", split="held_out"))
    assert error.overall == pytest.approx(last["v_mse"], abs=1e-3)
    result = pretrain("shapes", "--steps", 1, "--from", tmp_path, tmp_path / "second")
    assert result.exit_code == 0, result.output
    second = json.loads((tmp_path / "second" / LOG_FILE).read_text().splitlines()[1])
    assert second == {"step": 0, "v_mse": last["v_mse"]}


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_shipped_log_tells_how_the_model_was_made(name):
    lines = [json.loads(line) for line in (PRETRAINED[name] / LOG_FILE).read_text().splitlines()]
    header, last, end = lines[0], lines[-2], lines[-1]
    model = load_pixart(PRETRAINED[name])
    assert type(model) is PixArtTransformer2DModel and len(model.transformer_blocks) == LAYERS[name]
    assert header["parameters"] == sum(p.numel() for p in model.parameters()) and end["finished"]
    error = prediction_error(model, load_dataset(name, split="held_out"))
    assert error.overall == pytest.approx(last["v_mse"], abs=1e-3)


def test_augment_shifts_by_at_most_a_pixel_and_jitters_by_half_a_level():
    images, _ = load_split("train")
    result = augment(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1), value=-1.0)
    candidates = torch.stack([images, padded[..., 2:], padded[..., :-2]])
    distance = (candidates - result).abs().amax(dim=(2, 3, 4))
    assert distance.amin(0).max() <= 1 / 16
    assert distance.argmin(0).bincount().min() > 150
    assert result.abs().max() <= 1
    assert torch.equal(result, augment(images, torch.Generator().manual_seed(0)))


def test_an_unknown_data_set_is_refused(tmp_path: Path):
    result = pretrain("faces", tmp_path)
    assert result.exit_code == 2 and "name='faces' must be one of digits, shapes" in result.output
