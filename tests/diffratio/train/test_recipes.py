"""Learned variances, the paper's recipes and wider bins, through whole runs."""

import json
import warnings

import pytest
import torch
import typer
from diffusers import DDPMScheduler, PixArtTransformer2DModel
from typer.testing import CliRunner

from diffratio.cli.sample import sample
from diffratio.diffusion import noise_schedule
from diffratio.evaluation.quality import SampleSettings
from diffratio.evaluation.target import load_target
from diffratio.routing.find import routed_layers, routed_model
from diffratio.train import ArgumentError, load_run
from diffratio.train.arguments import SYSTEMS
from diffratio.train.model import load_base

SHORT = {"max_train_steps": 2, "checkpointing_steps": 2, "validation_steps": 2}


@pytest.fixture(scope="module")
def with_variance(tiny, tmp_path_factory):
    """tiny's PixArt with a second half of channels."""
    folder = tmp_path_factory.mktemp("variance")
    torch.manual_seed(0)
    model = PixArtTransformer2DModel.from_config(dict(tiny.make("pixart").config) | {"out_channels": 2})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    model.save_pretrained(folder / "transformer")
    noise_schedule().save_pretrained(folder / "scheduler")
    return {"pretrained_model_name_or_path": str(folder)} | SHORT


def test_a_variance_that_is_not_trained_is_said_and_stays(with_variance, tiny, tmp_path):
    with pytest.warns(UserWarning, match="predicts a variance, too, .* --learn_variance trains it"):
        run = tiny.train(tmp_path, method="dense", **with_variance)
    assert run["loss"] == "v-MSE" and run["sampling"] == {}
    assert DDPMScheduler.from_pretrained(tmp_path / "final/scheduler").config.variance_type == "fixed_small"


def test_a_recipe_trains_the_variance_and_says_how_to_sample(with_variance, tiny, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = tiny.train(tmp_path, recipe="inpaint", task="t2i", method="lt", **with_variance)
    arguments = run["arguments"]
    assert (arguments["num_regions"], arguments["adam_weight_decay"], arguments["recipe"]) == (
        10,
        0.03,
        "inpaint",
    )
    assert arguments["learning_rate"] == 1e-3, "given by the test, so no recipe's"
    assert run["loss"] == "v-MSE + variational bound"
    assert DDPMScheduler.from_pretrained(tmp_path / "final/scheduler").config.variance_type == "learned_range"
    target = load_target(tmp_path)
    told = SampleSettings.of(target, samples=4, seed=0, steps=None, guidance=1.0)
    assert told == SampleSettings(4, 0, 100, 1.0, "ddpm")
    assert told.variance(target) == "as the model predicts it"
    app = typer.Typer()
    app.command()(sample)
    options = ["--rows", "1", "--columns", "2", "--steps", "3", "--out", str(tmp_path / "x.png"), "--json"]
    result = CliRunner().invoke(app, [str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["variance"] == "as the model predicts it"


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_learns_a_variance(system, with_variance, tiny, tmp_path):
    given = with_variance | {"task": "inpaint", "system": system, "learn_variance": True}
    base = load_base(tiny.arguments(tmp_path, **given))
    assert base.objective.name == "v-MSE + variational bound"
    assert base.scheduler.config.variance_type == "learned_range"


def test_a_model_without_a_variance_learns_none(tiny, tmp_path):
    with pytest.raises(ArgumentError, match="^learn_variance=True: the model predicts no variance"):
        tiny.train(tmp_path / "a", learn_variance=True, **SHORT)
    with pytest.warns(UserWarning, match="recipe='t2i': the model predicts no variance, so none is learned"):
        run = tiny.train(tmp_path / "b", recipe="t2i", train_mode="lora", **SHORT)
    assert run["loss"] == "v-MSE" and run["sampling"] == {"sampler": "dpm++", "steps": 20, "guidance": 4.5}
    target = load_target(tmp_path / "b")
    told = SampleSettings.of(target, sampler="ddpm")
    assert told.steps == 20 and told.variance(target) == "fixed (the model predicts none)"


def test_bins_down_to_none_and_another_rescale(tiny, tmp_path):
    run = tiny.train(
        tmp_path, method="lt", target_compression=0.9, smallest_bin=0.0, rescale="output", num_regions=2
    )
    assert sum(map(sum, run["ratios"])) / 6 == pytest.approx(0.1)
    model, _ = load_run(tmp_path)
    assert routed_model(model).config.rescale == "output"
    assert min(min(layer.kept) for layer in routed_layers(model)) == 0
