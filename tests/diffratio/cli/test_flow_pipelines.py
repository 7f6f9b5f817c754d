"""`diffratio sample`, `eval` and `plot` of runs through the pipelines of flow models, and of a pipeline."""

import json
from importlib import import_module

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from diffratio.evaluation.pipeline import IMAGES
from diffratio.train import TrainArguments, train
from tools.flow_pretrain import pipeline, small_flux

NAMES = ("flux", "sd3", "qwen_image", "z_image", "wan")
FEW = ["--steps", 2, "--device", "cpu"]


def call(command, *arguments):
    app = typer.Typer()
    app.command()(getattr(import_module(f"diffratio.cli.{command}"), command))
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def told(command, *arguments):
    result = call(command, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("diffratio.train.data.VALIDATION_IMAGES", 8)
    monkeypatch.setattr("diffratio.evaluation.quality._REFERENCE", 256)
    monkeypatch.setattr("diffratio.evaluation.pipeline.ROUNDS", 1)
    monkeypatch.setitem(IMAGES, True, 8)


@pytest.fixture(scope="module")
def run_of(flow_pipelines, tmp_path_factory):
    """A run of two steps of each pipeline, made when it is asked for."""
    root, made = tmp_path_factory.mktemp("flow"), {}
    photos = flow_pipelines.draw_photos(root / "photos")

    def run(name):
        if name not in made:
            folder = flow_pipelines.save(name, root / name)
            arguments = TrainArguments(
                pretrained_model_name_or_path=str(folder), dataset_name=str(photos), resolution=32,
                output_dir=str(root / f"{name}-run"), max_sequence_length=8, max_train_steps=2,
                train_batch_size=4, rank=2, method="lt", num_regions=2, target_compression=0.5,
                report_to="none",
            )  # fmt: skip
            train(arguments, progress=False)
            made[name] = folder, root / f"{name}-run"
        return made[name]

    return run


@pytest.mark.parametrize("name", NAMES)
def test_sample_and_eval_go_through_the_pipeline(name, run_of, tmp_path):
    _, run = run_of(name)
    few = ["--columns", 2, "--rows", 1, "--out", tmp_path / "samples.png", *FEW]
    assert told("sample", run, *few)["captions"] == ["a red circle", "a green circle"]
    assert Image.open(tmp_path / "samples.png").size[0] > 100
    few = ["--samples", 2, "--batch", 1, "--dtype", "bf16" if name == "wan" else "fp32", *FEW]
    report = told("eval", run, "--picture", tmp_path / "sides.png", *few)
    assert (tmp_path / "sides.png").is_file()
    errors = [report[column]["velocity_mse"] for column in ("base", "dense", "quality")]
    assert len(set(errors)) == 3 and errors[0] == pytest.approx(errors[1], rel=0.02)  # LoRA of two steps
    assert (
        report["mean_kept"] == pytest.approx(0.5) and len(report["quality"]["velocity_mse_by_quartile"]) == 4
    )
    cost = report["cost"]
    assert 1 <= cost["all_tokens"]["gflop"] / cost["dense"]["gflop"] < 1.005  # the routers
    assert cost["sparse"]["gflop"] < 0.95 * cost["dense"]["gflop"]


def test_eval_says_what_it_does_not_judge(run_of):
    result = call("eval", run_of("sd3")[1], "--samples", 2, "--batch", 1, *FEW)
    assert result.exit_code == 0, result.output
    assert "not judged: router scores against object masks; Frechet distance and accuracy" in result.output
    assert "noise 0.75 to 1.00" in result.output


def test_a_pipeline_without_a_run_is_evaluated_too(run_of, tmp_path):
    folder, run = run_of("sd3")
    report = told("eval", folder, "--batch", 1, *FEW)
    assert report["quality"] is None and report["cost"]["dense"]["gflop"] > 0
    few = ["--columns", 1, "--out", tmp_path / "one.png", *FEW]
    alone = call("sample", folder, "--prompt", "a red box", "--dataset", run.parent / "photos", *few)
    assert alone.exit_code == 0, alone.output


def test_a_model_on_pixels_is_trained_on_drawn_data_and_judged_by_its_classifier(tmp_path):
    pipeline(small_flux(3, 64, seed=0)).save_pretrained(tmp_path / "flow")
    model = ["--pretrained_model_name_or_path", tmp_path / "flow", "--dataset_name", "shapes"]
    sizes = ["--max_train_steps", 2, "--train_batch_size", 4, "--report_to", "none", "--train_mode", "full"]
    run = told("train", *model, *sizes, "--output_dir", tmp_path / "run")
    assert (run["loss"], run["latents"], run["resolution"]) == ("velocity-MSE", False, None)
    report = told("eval", tmp_path / "run", "--samples", 4, "--batch", 1, *FEW)
    assert report["quality"].keys() >= {"frechet", "accuracy_joint", "velocity_mse"}
    assert report["real"]["accuracy_joint"] > 0.9
    prompt = "a small red circle in the upper left on stripes"
    few = ["--columns", 1, "--out", tmp_path / "one.png", "--prompt", prompt, *FEW]
    assert told("sample", tmp_path / "run", *few)["captions"] == [prompt]


def test_plot_draws_ratios_and_says_what_it_leaves_out(run_of, tmp_path):
    _, run = run_of("flux")
    result = call("plot", run, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / run.name / "regions.png").is_file()
    assert "no maps, scores, scores-of-ratios of flow models" in result.output
    refused = call("plot", run, "--out", tmp_path, "--figure", "maps")
    assert refused.exit_code == 2 and "is not drawn for flow models" in refused.output
