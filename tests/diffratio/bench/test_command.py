"""`diffratio bench`: what it says of a run besides the rows."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from diffratio.bench.record import read
from diffratio.cli.bench import bench

app = typer.Typer()
app.command()(bench)


def test_rows_say_how_their_peers_were_compiled(monkeypatch):
    row = {"level": "block", "name": "dense, compiled"}
    monkeypatch.setattr("diffratio.bench.measure.measure", lambda *args, **kwargs: [row])
    for mode, said in (("default", "default"), ("none", None)):
        result = CliRunner().invoke(app, ["block", "--json", "--compile-mode", mode])
        run = json.loads(result.stdout)
        assert run["compile_mode"] == said and run["rows"] == [row] and run["threads"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["blocks"], "level='blocks'"),
        (["model", "--tokens", "15"], "tokens=15"),
        (["block", "--kept", "0.55"], "kept=0.55"),
        (["block", "--width", "20", "--heads", "3"], "width=20"),
        (["block", "--dtype", "fp8"], "dtype='fp8'"),
        (["block", "--compile-mode", "fast"], "compile_mode='fast'"),
        (["block", "--out", "/dev/null/results"], "out='/dev/null/results'"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_measured(words, named, monkeypatch):
    monkeypatch.setattr("diffratio.bench.measure.measure", lambda *args, **kwargs: pytest.fail("measured"))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and named in result.output


def test_rows_are_appended_and_shown(tmp_path):
    sizes = {"tokens": 16, "width": 32, "heads": 2, "text": 5, "rounds": 2, "kept": 0.5}
    words = ["block", *(f"--{name}={size}" for name, size in sizes.items()), "--batch", "1", "--batch", "2"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert result.exit_code == 0 and result.output.count("mod_block native") == 2
    assert " ms " not in result.output or torch.cuda.is_available()
    [path] = tmp_path.iterdir()
    assert {row["batch"] for row in read(path)} == {1, 2}
