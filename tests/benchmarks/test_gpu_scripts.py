"""The scripts behind `make gpu`, where there is no GPU: they run on the CPU, or say that they cannot."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from diffratio.cli.bench import bench

ROOT = Path(__file__).parents[2]


def script(name, *arguments, **environment):
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")])}
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | path | environment,
        capture_output=True,
        text=True,
    )


def test_every_kernel_runs_once():
    done = script("every_kernel.py")
    assert done.returncode == 0, done.stderr
    assert "every result is finite" in done.stdout


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_a_missing_tool_is_not_available(tool, tmp_path):
    done = script("sanitize.py", tool, PATH=str(tmp_path), CUDA_HOME="nowhere")
    assert (done.returncode, done.stdout) == (77, "compute-sanitizer is not installed\n")


def fake_tool(folder, body):
    tool = folder / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_the_tool_runs_every_kernel_and_its_verdict_counts(tmp_path):
    echo = fake_tool(tmp_path, 'echo "$@" $PYTORCH_NO_CUDA_MEMORY_CACHING')
    done = script("sanitize.py", "memcheck", PATH=echo)
    assert done.returncode == 0 and "--tool memcheck --report-api-errors no" in done.stdout
    assert f"{sys.executable} {ROOT / 'benchmarks' / 'every_kernel.py'} 1\n" in done.stdout
    assert script("sanitize.py", "memcheck", PATH=fake_tool(tmp_path, "exit 99")).returncode == 99
    refused = script("sanitize.py", "memcheck", PATH=fake_tool(tmp_path, "echo Device not supported; exit 1"))
    assert refused.returncode == 77


def test_without_a_gpu_nothing_is_built(tmp_path):
    """setup.py is a stand-in."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "build.py", tmp_path / "benchmarks" / "build.py")
    (tmp_path / "setup.py").write_text("print('built', flush=True)\n")
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")])}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "benchmarks" / "build.py")],
        cwd=tmp_path,
        env=os.environ | path | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 77 and not done.stderr
    assert done.stdout == f"no CUDA device: torch {torch.__version__} finds none\n"
    assert not (tmp_path / "out").exists()


def latency_pieces():
    pieces = json.loads((ROOT / "benchmarks" / "gpu.json").read_text())
    return [entry for entry in pieces if " -m diffratio bench " in entry["command"]]


@pytest.mark.parametrize("piece", latency_pieces(), ids=lambda piece: piece["name"])
def test_the_command_line_takes_what_the_pieces_ask_for(piece, monkeypatch):
    """Without measuring: every level is asked for its subjects at the piece's sizes."""
    asked = []

    def subjects(level, options):
        asked.append((level, options.batch, options.tokens, options.compile_mode))
        return iter(())

    monkeypatch.setattr("diffratio.bench.registry.subjects", subjects)
    words = shlex.split(piece["command"].format(python="python", out="results"))[4:]
    app = typer.Typer()
    app.command()(bench)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert {level for level, *_ in asked} == {words[0]}
    assert all(f"--batch {batch}" in piece["command"] for _, batch, *_ in asked if words[0] != "peak")
