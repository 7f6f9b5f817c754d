"""`--baseline` of `diffratio eval` and `sample`, as typed."""

import json

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from diffratio.cli.eval import eval as eval_command
from diffratio.cli.eval import print_report
from diffratio.cli.sample import sample

FAST = ["--samples", "4", "--steps", "2", "--batch", "2", "--device", "cpu"]


def call(command, *arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def test_eval_names_the_baseline_beside_the_dense_model(tmp_path, capsys):
    arguments = ["digits", "--baseline", "tome:all:0.5", *FAST, "--picture", tmp_path / "rows.png"]
    report = json.loads(call(eval_command, *arguments, "--json").stdout)
    assert report["baseline"] == "tome:all:0.5" and report["mean_kept"] is None
    assert report["quality"]["v_mse"] > report["dense"]["v_mse"]
    assert list(report["cost"]) == ["dense", "tome:all:0.5"]
    assert report["cost"]["tome:all:0.5"]["gflop"] < report["cost"]["dense"]["gflop"]
    print_report(report)
    printed = capsys.readouterr().out
    assert "the same weights by that baseline" in printed and "tome:all:0.5 / dense" in printed
    assert Image.open(tmp_path / "rows.png").size[0] > 0


def test_eval_of_a_run_by_uniform_mod(synthetic_runs, monkeypatch):
    """Its routers stay, and keep the same part everywhere."""
    monkeypatch.setattr("diffratio.evaluation.evaluate.model_cost", lambda *_, **__: {})
    result = call(eval_command, synthetic_runs / "mod", "--baseline", "mod:0.2:floor", *FAST, "--json")
    report = json.loads(result.stdout)
    assert (report["baseline"], report["kept_tenths"]) == ("mod:0.2:floor", [[8], [8]])


@pytest.mark.parametrize("command", [eval_command, sample])
@pytest.mark.parametrize(
    ("path", "name", "words"),
    [
        ("digits", "tome:0.2", "baseline='tome:0.2' must be tome:attn|mlp|all:RATIO"),
        (None, "atedm:0.2", "has routers; call remove_diffratio first"),
    ],
)
def test_a_baseline_that_cannot_be_is_an_error(command, path, name, words, synthetic_runs):
    result = call(command, path or synthetic_runs / "mod", "--baseline", name)
    assert result.exit_code == 2 and words in " ".join(result.output.replace("│", " ").split())


def test_sample_draws_by_a_baseline(tmp_path):
    out = tmp_path / "drawn.png"
    arguments = ["digits", "--rows", 1, "--columns", 2, "--steps", 2, "--device", "cpu", "--out", out]
    result = call(sample, *arguments, "--baseline", "atedm:0.5:residual")
    assert result.exit_code == 0, result.output
    pruned = out.read_bytes()
    assert call(sample, *arguments).exit_code == 0 and out.read_bytes() != pruned
