"""`diffratio eval`, `sample` and `plot`, as typed."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.cli.demo import demo
from diffratio.cli.eval import eval as eval_command
from diffratio.cli.plot import plot
from diffratio.cli.sample import sample
from diffratio.data import load_dataset
from diffratio.diffusion import noise_schedule
from diffratio.train.model import write_model
from tools.toy_pretrain import small_pixart

FAST = ["--steps", "2", "--device", "cpu"]


def call(command, *arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def flat(result):
    """The output without the frame of an error, in one line."""
    return " ".join(result.output.replace("│", " ").split())


def test_eval_gives_quality_and_cost_of_a_run(synthetic_runs):
    result = call(eval_command, synthetic_runs / "lt", "--samples", 4, "--batch", 2, "--json", *FAST)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["kept_tenths"] == [[8, 6], [7, 3]] and report["mean_kept"] == pytest.approx(0.6)
    assert (report["dataset"], report["samples"], report["steps"], report["batch"]) == ("digits", 4, 2, 2)
    assert report["quality"].keys() >= {"frechet", "accuracy_joint", "v_mse_by_quartile"}
    assert report["real"]["accuracy_joint"] == 1 and "router_auc" not in report
    cost = report["cost"]
    assert cost["sparse"]["gflop"] < cost["dense"]["gflop"]
    assert cost["sparse"]["peak_megabytes"] < cost["dense"]["peak_megabytes"]


def test_eval_prints_tables(synthetic_runs):
    ddpm = ("--sampler", "ddpm", "--samples", 2, "--batch", 1)
    result = call(eval_command, synthetic_runs / "dense", *ddpm, *FAST)
    assert result.exit_code == 0, result.output
    for words in (
        *("dense: 2 samples, 2 steps of ddpm", "variance of ddpm: fixed (the model", "Frechet distance"),
        *("accuracy, digit", "timesteps 750 to 999", "100.0% of the tokens kept", "peak memory", "GFLOP"),
    ):
        assert words in result.output


def test_eval_compares_with_the_base_as_long_as_it_is_there(synthetic_runs, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("diffratio.evaluation.evaluate.model_cost", lambda *_, **__: {})
    arguments = ("--samples", 4, "--json", *FAST)
    report = json.loads(call(eval_command, synthetic_runs / "lt", *arguments).stdout)
    plain = json.loads(call(eval_command, "digits", *arguments).stdout)
    assert report["base"] == plain["quality"] and not {"base", "dense"} & plain.keys()
    assert report["dense"]["v_mse"] != report["quality"]["v_mse"]
    dense = json.loads(call(eval_command, synthetic_runs / "dense", *arguments).stdout)
    assert dense["base"] == plain["quality"] and "dense" not in dense
    run = shutil.copytree(synthetic_runs / "lt", tmp_path / "lt")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"base_model": "/no/such/folder"}))
    noise_schedule().save_pretrained(run / "final" / "scheduler")
    report = json.loads(call(eval_command, run, *arguments).stdout)
    assert "base" not in report and "'/no/such/folder' is no folder" in report["why_no_base"]


def test_eval_says_why_there_is_no_quality(synthetic_runs):
    arguments = (synthetic_runs / "lt", "--dataset", "shapes", "--samples", 2, "--batch", 1, *FAST)
    report = json.loads(call(eval_command, *arguments, "--json").stdout)
    assert report["quality"] is None and "1 channels instead of 3" in report["why_no_quality"]
    assert report["cost"]["dense"]["gflop"] > 0
    assert "no quality: the model does not fit" in call(eval_command, *arguments).output


@pytest.mark.parametrize(
    "command, arguments, words",
    [
        (eval_command, ["nowhere"], "path: 'nowhere' holds no run"),
        (eval_command, ["digits", "--dtype", "int8"], "dtype='int8' must be one of fp32"),
        (eval_command, ["digits", "--device", "tpu"], "device='tpu' must be cpu"),
        (
            eval_command,
            ["digits", "--samples", "2", "--steps", "1", "--fid-weights", "no"],
            "fid_weights: no file",
        ),
        (sample, ["digits", "--dataset", "shapes"], "the model does not fit 'shapes'"),
        (plot, ["nowhere"], "path: 'nowhere' holds no run"),
        (plot, ["nowhere", "--figure", "pie"], "figure='pie' must be one of trajectories"),
    ],
)
def test_wrong_arguments_are_named(command, arguments, words):
    result = call(command, *arguments)
    assert result.exit_code == 2 and words in flat(result)


@pytest.fixture
def few_images(synthetic, synthetic_runs, tmp_path: Path):
    """A run on a folder of images of which 2 are held out."""
    images, run = tmp_path / "images", shutil.copytree(synthetic_runs / "lt", tmp_path / "runs" / "lt")
    for split, count in (("train", 6), ("validation", 2)):
        (images / split).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(images / split / f"{i}.png")
            (images / split / f"{i}.txt").write_text(f"image {i}")
    data = load_dataset(str(images), split="held_out", resolution=8)
    assert len(data) == 2
    model = small_pixart(data, 0, layers=2, heads=1)
    apply_diffratio(model, DiffRatioConfig(0.3))
    for folder in (run / "final", *(run / f"checkpoint-{step}" / "adapter" for step in synthetic.STEPS)):
        write_model(model, folder)
    info = json.loads((run / "run.json").read_text()) | {"dataset": str(images)}
    info["arguments"] |= {"resolution": 8}
    (run / "run.json").write_text(json.dumps(info))
    return run


@pytest.fixture
def other_data(synthetic_runs, tmp_path: Path):
    """A run whose model does not make the images of its data set, as where it works on latents."""
    run = shutil.copytree(synthetic_runs / "lt", tmp_path / "runs" / "lt")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"dataset": "shapes"}))
    return run


def test_plot_draws_what_needs_no_samples_of_a_run_on_latents(other_data, tmp_path: Path):
    result = call(plot, other_data, "--out", tmp_path / "out", "--json", *FAST)
    assert result.exit_code == 0, result.output
    assert [Path(path).name for path in json.loads(result.stdout)] == ["trajectories.png", "regions.png"]
    assert "no maps and no quality: the model does not fit 'shapes'" in result.stderr
    for figure in ("maps", "quality"):
        refused = call(plot, other_data, "--figure", figure, *FAST)
        assert refused.exit_code == 2 and "the model does not fit 'shapes'" in refused.output


def test_the_caption_column_of_the_run_is_used(synthetic_runs, tmp_path: Path):
    images, run = tmp_path / "images", shutil.copytree(synthetic_runs / "lt", tmp_path / "lt")
    images.mkdir()
    rows = [{"file_name": f"{i}.png", "title": f"image {i}"} for i in range(4)]
    for row in rows:
        Image.new("RGB", (32, 32)).save(images / row["file_name"])
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    info = json.loads((run / "run.json").read_text()) | {"dataset": str(images)}
    info["arguments"] |= {"caption_column": "title", "resolution": 32}
    (run / "run.json").write_text(json.dumps(info))
    report = json.loads(call(eval_command, run, "--samples", 2, "--batch", 1, "--json", *FAST).stdout)
    assert "the model does not fit 'images-" in report["why_no_quality"]


@pytest.mark.parametrize("command", [eval_command, sample, plot])
def test_a_data_set_that_is_not_there_is_named(command, synthetic_runs, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    run = shutil.copytree(synthetic_runs / "lt", tmp_path / "lt")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"dataset": "gone"}))
    result = call(command, run, "--out" if command is not eval_command else "--seed", 0)
    assert result.exit_code == 2 and "name_or_path='gone' is no folder" in result.output


@pytest.mark.parametrize("command", [eval_command, sample, plot])
def test_a_damaged_file_of_a_run_is_named(command, synthetic_runs, tmp_path: Path):
    run = shutil.copytree(synthetic_runs / "lt", tmp_path / "lt")
    os.truncate(run / "final" / "diffusion_pytorch_model.safetensors", 500)
    result = call(command, run)
    assert result.exit_code == 2 and "diffusion_pytorch_model.safetensors is damaged" in flat(result)


def test_eval_without_enough_held_out_images_still_tells_the_cost(few_images):
    result = call(eval_command, few_images, "--samples", 4, "--batch", 1, "--json", *FAST)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    reason = (
        f"the held-out part of {json.loads((few_images / 'run.json').read_text())['dataset']!r} has 2 images"
    )
    assert report["quality"] is None and reason in report["why_no_quality"]
    assert report["cost"]["sparse"]["gflop"] > 0
    refused = call(plot, few_images, "--figure", "quality", *FAST)
    assert refused.exit_code == 2 and "at least 4 are needed" in flat(refused)
    drawn = call(plot, few_images, "--out", few_images / "plots", "--json", *FAST)
    assert [Path(path).name for path in json.loads(drawn.stdout)] == ["trajectories.png", "regions.png"]


@pytest.mark.parametrize(
    "command, inside", [(sample, "x.png"), (sample, "new/x.png"), (plot, "plots"), (demo, "demo")]
)
def test_an_output_that_cannot_be_written_is_named_before_the_work(
    command, inside, synthetic_runs, tmp_path: Path, monkeypatch
):
    for work in ("evaluation.target.load_target", "demo.run.run_demo", "plots.run.draw_run"):
        monkeypatch.setattr(f"diffratio.{work}", lambda *_, **__: pytest.fail("began the work"))
    (tmp_path / "file").touch()
    out = tmp_path / "file" / inside
    result = call(command, *([] if command is demo else [synthetic_runs / "lt"]), "--out", out)
    words = flat(result)
    assert (
        result.exit_code == 2 and f"out='{out}'" in words and f"{tmp_path / 'file'} is not a folder" in words
    )


def test_a_folder_is_no_picture_and_a_locked_folder_takes_none(tmp_path: Path, monkeypatch):
    assert f"out='{tmp_path}' is a folder" in flat(call(sample, "digits", "--out", tmp_path))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    result = call(sample, "digits", "--out", tmp_path / "x.png")
    assert result.exit_code == 2 and f"{tmp_path} cannot be written to" in flat(result)


def test_sample_writes_a_picture(tmp_path: Path):
    picture = tmp_path / "new" / "x.png"
    result = call(sample, "digits", "--out", picture, "--rows", 1, "--columns", 2, "--json", *FAST)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert picture.read_bytes().startswith(b"\x89PNG") and len(told["captions"]) == 2


def test_plot_writes_what_is_asked_for(synthetic_runs, tmp_path: Path):
    arguments = (synthetic_runs / "lt", synthetic_runs / "mod", "--out", tmp_path)
    result = call(plot, *arguments, "--figure", "trajectories", "--figure", "regions", "--json")
    assert result.exit_code == 0, result.output
    names = [str(Path(path).relative_to(tmp_path)) for path in json.loads(result.stdout)]
    assert names == ["lt/trajectories.png", "lt/regions.png"]
    twice = call(plot, synthetic_runs / "lt", synthetic_runs / "lt", "--out", tmp_path)
    assert twice.exit_code == 2 and "two of them have the same name" in twice.output
