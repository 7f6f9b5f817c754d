"""`diffratio bench`: what it says of a run besides the rows."""

import json

import typer
from typer.testing import CliRunner

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
