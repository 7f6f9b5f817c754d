"""Every model is evaluated with the noise that it was trained with, or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from typer.testing import CliRunner

from diffratio.cli.eval import eval as eval_command
from diffratio.cli.plot import plot
from diffratio.cli.sample import sample
from diffratio.data import load_dataset
from diffratio.diffusion import noise_schedule
from diffratio.diffusion.schedules import latents_scheduler, read_schedule
from diffratio.evaluation.target import load_target
from diffratio.toy import DIGITS_LT30, PRETRAINED
from tools.toy_pretrain import small_pixart

FEW = ["--samples", "4", "--steps", "2", "--device", "cpu"]


def call(command, *arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "240"})


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The folder of a pipeline whose model of digits predicts the noise on a linear schedule."""
    small_pixart(load_dataset("digits"), 0, layers=1, heads=1).save_pretrained(tmp_path / "pipe/transformer")
    DDPMScheduler().save_pretrained(tmp_path / "pipe/scheduler")
    return tmp_path / "pipe"


def test_the_package_knows_the_schedule_of_its_models():
    for name in ("digits", "shapes", PRETRAINED["digits"], DIGITS_LT30):
        assert load_target(name).schedule.config == noise_schedule().config


def test_a_run_tells_its_schedule(synthetic_runs, tmp_path: Path):
    run = shutil.copytree(synthetic_runs / "lt", tmp_path / "lt")
    assert load_target(run).schedule.config == noise_schedule().config, (
        "from digits, as before it was written"
    )
    DDPMScheduler().save_pretrained(run / "final/scheduler")
    assert load_target(run).schedule.config.prediction_type == "epsilon"
    assert load_target(run, checkpoint=2).schedule.config.prediction_type == "v_prediction"
    result = call(eval_command, run, "--batch", 1, *FEW)
    assert result.exit_code == 0, result.output
    assert "noise-MSE" in result.output and "v-MSE" not in result.output


def test_a_pipeline_tells_its_schedule(pipeline: Path):
    for path in (pipeline, pipeline / "transformer"):
        config = load_target(path).schedule.config
        assert (config.prediction_type, config.beta_schedule) == ("epsilon", "linear")
    assert load_target(pipeline).name == "pipe"


def test_a_model_without_a_schedule_is_not_judged(pipeline: Path, tmp_path: Path):
    shutil.rmtree(pipeline / "scheduler")
    words = "noise that 'pipe' was trained with is not known: no scheduler/scheduler_config.json in"
    report = json.loads(call(eval_command, pipeline, "--dataset", "digits", "--json", *FEW).stdout)
    assert report["quality"] is None and words in report["why_no_quality"]
    assert report["cost"]["dense"]["gflop"] > 0
    result = call(sample, pipeline, "--dataset", "digits", "--out", tmp_path / "x.png")
    assert result.exit_code == 2 and "was trained with is not known" in result.output


def test_figures_of_a_run_without_a_schedule_are_refused(synthetic_runs, tmp_path: Path):
    run = shutil.copytree(synthetic_runs / "mod", tmp_path / "mod")
    info = json.loads((run / "run.json").read_text())
    info["base_model"] = "someone/their-model"
    (run / "run.json").write_text(json.dumps(info))
    for figure in ("maps", "quality"):
        result = call(plot, run, "--figure", figure, "--out", tmp_path / "out", *FEW)
        assert result.exit_code == 2 and f"{figure}: the noise that 'mod' was trained with" in result.output


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (FlowMatchEulerDiscreteScheduler(), "_class_name='FlowMatchEulerDiscreteScheduler' cannot be"),
        (DDPMScheduler(prediction_type="flow"), "prediction_type='flow' cannot be evaluated, only v_pred"),
        (DDPMScheduler(num_train_timesteps=50), "num_train_timesteps=50 cannot be evaluated, only 1000"),
        (DDPMScheduler(beta_schedule="sigmoid"), r"DPM-Solver\+\+ cannot sample with it \(sigmoid"),
    ],
)
def test_a_schedule_that_evaluation_cannot_use_is_named(scheduler, words, tmp_path: Path):
    scheduler.save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match=f"scheduler_config.json: {words}"):
        read_schedule([tmp_path])


@pytest.mark.parametrize("own", [DPMSolverMultistepScheduler(), DDIMScheduler(), DDPMScheduler()])
def test_a_pipelines_steps_are_spread_evenly_over_regions_and_its_latents_not_clipped(own):
    for sampler, steps in (("dpm++", 20), ("ddpm", 100)):
        scheduler = latents_scheduler(own.config, sampler)
        scheduler.set_timesteps(steps)
        regions = (scheduler.timesteps * 4 // 1000).clamp(max=3)
        assert regions.bincount().tolist() == [steps // 4] * 4
        assert not scheduler.config.thresholding and not scheduler.config.get("clip_sample")
        assert scheduler.config.beta_end == own.config.beta_end
