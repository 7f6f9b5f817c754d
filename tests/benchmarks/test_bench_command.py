"""`diffratio bench`: what it says of a run besides the rows."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.harness.command import bench
from diffratio.cli.bench import bench_of
from diffratio.evaluation.results import read
from diffratio.plots.results import draw_results
from diffratio_kernels import mod_block
from diffratio_kernels.testing import budget

app = typer.Typer()
app.command()(bench)


def test_without_a_checkout_it_says_what_it_needs(tmp_path):
    app, command = typer.Typer(), bench_of(tmp_path)
    app.command(context_settings=command.context_settings)(command)
    result = CliRunner().invoke(app, ["block", "--batch", "1"])
    assert result.exit_code == 2 and len(result.output.splitlines()) == 1
    assert "needs a checkout of the repository" in result.output and "pip install -e" in result.output
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0 and "sampling" in shown.output


def test_rows_say_how_their_peers_were_compiled(monkeypatch):
    row = {"suite": "block", "name": "dense, compiled"}
    monkeypatch.setattr("benchmarks.harness.measure.measure", lambda *args, **kwargs: [row])
    for mode, said in (("default", "default"), ("none", None)):
        result = CliRunner().invoke(app, ["block", "--json", "--compile-mode", mode])
        run = json.loads(result.stdout)
        assert run["compile_mode"] == said and run["rows"] == [row] and run["threads"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["blocks"], "suite='blocks'"),
        (["model", "--tokens", "15"], "tokens=15"),
        (["block", "--kept", "0.55"], "kept=0.55"),
        (["block", "--width", "20", "--heads", "3"], "width=20"),
        (["block", "--dtype", "fp8"], "dtype='fp8'"),
        (["block", "--compile-mode", "fast"], "compile_mode='fast'"),
        (["block", "--out", "/dev/null/results"], "out='/dev/null/results'"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_measured(words, named, monkeypatch):
    monkeypatch.setattr("benchmarks.harness.measure.measure", lambda *args, **kwargs: pytest.fail("measured"))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and named in result.output


def test_rows_are_appended_and_shown(tmp_path):
    sizes = {"tokens": 16, "width": 32, "heads": 2, "text": 5, "rounds": 2, "kept": 0.5}
    words = ["block", *(f"--{name}={size}" for name, size in sizes.items()), "--batch", "1", "--batch", "2"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert result.exit_code == 0 and result.output.count("mod_block cpu") == 2
    assert " ms " not in result.output or torch.cuda.is_available()
    [path] = tmp_path.iterdir()
    assert {row["batch"] for row in read(path)} == {1, 2}
    assert f"2 subjects measured, appended to {path}" in result.output


def test_a_wrong_kernel_is_a_refused_row_and_the_exit_code(tmp_path, monkeypatch):
    """Planted in half of the blocks: what is right beside them is measured and stored."""

    def planted(**arguments):
        return mod_block(**arguments) * (1.01 if arguments["keep"] == [8] else 1)

    monkeypatch.setattr("benchmarks.suites.block.mod_block", planted)
    monkeypatch.setattr(budget, "worst", {})  # the table of this run is not about it
    sizes = {"batch": 1, "tokens": 16, "width": 32, "heads": 2, "text": 5, "rounds": 2}
    words = ["block", *(f"--{name}={size}" for name, size in sizes.items()), "--kept=1.0", "--kept=0.5"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "failed: mod_block cpu: mod_block cpu, 8 of 16 kept: error max" in result.output
    [path] = tmp_path.iterdir()
    rows = read(path)
    own = {row["kept"]: row for row in rows if row["name"] == "mod_block cpu"}
    assert own[1.0]["of_baseline"] > 0 and "over the budget" in own[0.5]["refused"]
    assert own[0.5]["failed"] and "seconds" not in own[0.5]
    assert [row["kept"] for row in rows if row["name"] == "authors' eager"] == [1.0, 0.5]
    pictures = draw_results(path, tmp_path / "pictures")
    assert [picture.stem.endswith("-block") for picture in pictures] == [True]


def test_a_stopped_run_keeps_what_was_measured_and_says_so(tmp_path, monkeypatch):
    measured = []

    def measure(subject, *args, **kwargs):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(subject.name)
        facts = {"suite": "peak", "subject": subject.name, "dtype": "float32", "name": "torch", "kept": 1.0}
        return [
            facts | {"mode": "eager", "cache": "cold", "seconds": 2.0, "flops": 3 * 10**12, "bytes": 10**9}
        ]

    monkeypatch.setattr("benchmarks.harness.measure.measure", measure)
    result = CliRunner().invoke(app, ["peak", "--out", str(tmp_path)])
    [path] = tmp_path.iterdir()
    assert result.exit_code == 130 and f"stopped: 2 subjects measured, appended to {path}" in result.output
    assert [row["subject"] for row in read(path)] == measured
    assert "TFLOP/s" in result.output and " 1.5 " in result.output  # the peaks of a processor are no ratios


def test_a_folder_that_cannot_be_made_costs_no_measurement(monkeypatch):
    monkeypatch.setattr("benchmarks.harness.measure.measure", lambda *args, **kwargs: pytest.fail("measured"))
    monkeypatch.setattr("diffratio.cli.output.os.access", lambda *args: True)  # as root sees /proc
    result = CliRunner().invoke(app, ["peak", "--out", "/proc/results"])
    assert result.exit_code == 2 and "out='/proc/results': No such file" in result.output


def test_a_kept_part_given_twice_is_measured_once(monkeypatch):
    asked = []
    monkeypatch.setattr("benchmarks.suites.subjects", lambda suite, options: asked.append(options) or [])
    CliRunner().invoke(app, ["block", "--kept", "0.5", "--kept", "0.5", "--batch", "1", "--batch", "1"])
    assert [options.kept for options in asked] == [(0.5,)]
