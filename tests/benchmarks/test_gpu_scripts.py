"""The scripts behind `make gpu`, where there is no GPU: they run on the CPU, or say that they cannot."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_a_build_without_a_gpu_is_a_failure(tmp_path):
    """Without compiling anything: setup.py is a stand-in."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("build.py", "machine.py"):
        shutil.copy(ROOT / "benchmarks" / name, tmp_path / "benchmarks" / name)
    (tmp_path / "setup.py").write_text(
        "import os, sys; print(sys.argv[1:], os.environ['DIFFRATIO_BUILD_CUDA'], flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "benchmarks" / "build.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("['build_ext', '--inplace'] 1\n")
    assert done.returncode == 1 and "AssertionError" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("table", ["block", "operators", "training"])
def test_latency_without_a_gpu_writes_ratios_and_no_times(table, tmp_path):
    done = script("latency.py", table, "--tokens", 32, "--out", tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.iterdir()
    results = json.loads(path.read_text())
    assert path.name == f"cpu-ratios-{table}-32.json" and results["gpu"] is None
    assert results["commit"] and torch.__version__.startswith(results["versions"]["torch"].split("+")[0])
    assert results["rows"] and not any("second" in key for row in results["rows"] for key in row)
    assert " us" not in done.stdout and "of_" in done.stdout
