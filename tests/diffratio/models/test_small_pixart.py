import json
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from typer import Typer
from typer.testing import CliRunner

from diffratio.data import load_dataset
from diffratio.evaluation.prediction import prediction_error
from diffratio.models import PRETRAINED, load_pixart, sampling_scheduler, small_pixart
from diffratio.models.pretrain import LOG_FILE, draw_captioned, main


def pretrain(*arguments):
    app = Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_model_for_shapes_has_64_tokens_and_about_a_million_parameters():
    shapes = load_dataset("shapes")
    model = small_pixart(shapes, 0)
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.1e6
    assert (model.config.sample_size // model.config.patch_size) ** 2 == 64
    batch = shapes.batch(range(2))
    with torch.no_grad():
        out = model(batch["pixel_values"], batch["tokens"], timestep=torch.tensor([1, 999])).sample
    assert out.shape == (2, 3, 32, 32) and not out.any()  # untrained, it predicts zero


def test_dropped_text_is_the_null_text():
    shapes = load_dataset("shapes")
    draw = draw_captioned(shapes, drop_text=0.5)
    images, tokens = draw(64, torch.Generator().manual_seed(0))
    null = (tokens == shapes.null_tokens).flatten(1).all(1)
    assert 16 < null.sum() < 48 and images.shape == (64, 3, 32, 32)
    again, _ = draw(64, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_pretraining_writes_a_model_that_repeats_its_log(tmp_path: Path, monkeypatch):
    few = partial(prediction_error, samples=16)
    monkeypatch.setattr("diffratio.models.pretrain.prediction_error", few)
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


def test_the_shipped_log_tells_how_the_model_was_made():
    header, *_, last, end = map(json.loads, (PRETRAINED["shapes"] / LOG_FILE).read_text().splitlines())
    model = load_pixart(PRETRAINED["shapes"])
    assert header["parameters"] == sum(p.numel() for p in model.parameters()) and end["finished"]
    error = prediction_error(model, load_dataset("shapes", split="held_out"))
    assert error.overall == pytest.approx(last["v_mse"], abs=1e-3)
    assert type(model) is PixArtTransformer2DModel


def test_an_unknown_data_set_and_an_empty_folder_are_refused(tmp_path: Path):
    result = pretrain("faces", tmp_path)
    assert result.exit_code == 2 and "name='faces' must be one of digits, shapes" in result.output
    with pytest.raises(FileNotFoundError, match="folder .* holds no model"):
        load_pixart(tmp_path)


def test_sampling_starts_from_pure_noise():
    scheduler = sampling_scheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert scheduler.alphas_cumprod[999] < 1e-4


def test_the_package_stays_small():
    package = PRETRAINED["digits"].parents[2]
    assert sum(path.stat().st_size for path in package.rglob("*.safetensors")) < 16_000_000
