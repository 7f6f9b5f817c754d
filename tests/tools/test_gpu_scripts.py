"""The scripts behind `make gpu`, where there is no GPU: they run on the CPU, or say that they cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness.subject import Candidate, Subject
from diffratio.evaluation.results import read
from diffratio_kernels import attention, mod_block
from diffratio_kernels.testing import budget
from tools.gpu import build, device, probe, warm_up
from tools.tune import attention_sweep

ROOT = Path(__file__).parents[2]


def script(name, *arguments, **environment):
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python")])}
    return subprocess.run(
        [sys.executable, "-m", f"tools.gpu.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | path | environment,
        capture_output=True,
        text=True,
    )


def test_every_kernel_runs_once():
    done = script("every_kernel")
    assert done.returncode == 0, done.stderr
    assert "every result is finite" in done.stdout


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_a_missing_tool_is_not_available(tool, tmp_path):
    done = script("sanitize", tool, PATH=str(tmp_path), CUDA_HOME="nowhere")
    assert (done.returncode, done.stdout) == (77, "compute-sanitizer is not installed\n")


def fake_tool(folder, body):
    tool = folder / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_the_tool_runs_every_kernel_and_its_verdict_counts(tmp_path):
    echo = fake_tool(tmp_path, 'echo "$@" $PYTORCH_NO_CUDA_MEMORY_CACHING')
    done = script("sanitize", "memcheck", PATH=echo)
    assert done.returncode == 0 and "--tool memcheck --report-api-errors no" in done.stdout
    assert f"{sys.executable} -m tools.gpu.every_kernel 1\n" in done.stdout
    assert script("sanitize", "memcheck", PATH=fake_tool(tmp_path, "exit 99")).returncode == 99
    refused = script("sanitize", "memcheck", PATH=fake_tool(tmp_path, "echo Device not supported; exit 1"))
    assert refused.returncode == 77


@pytest.fixture
def builder(monkeypatch):
    """build.py as on a GPU; called with the exit codes of its commands: its own, and how often it built."""
    monkeypatch.setattr(build.torch.cuda, "is_available", lambda: True)

    def run(*codes):
        left, built = list(codes), []

        def command(words, **_):
            built.append("setup.py" in words)
            return subprocess.CompletedProcess(words, left.pop(0))

        monkeypatch.setattr(build.subprocess, "run", command)
        code = build.main()
        assert not left
        return code, sum(built)

    return run


def test_a_library_that_loads_is_not_built_again(builder):
    assert builder(0) == (0, 0)
    assert builder(1, 0, 0) == (0, 1)
    assert builder(1, 0, 1) == (1, 1) == builder(1, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_built_and_no_device_described(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["device.py", "--facts", str(tmp_path / "facts.json")])
    assert build.main() == 77 == device.main()
    said = f"no CUDA device: torch {torch.__version__} finds none\n"
    assert capsys.readouterr().out == 2 * said and not list(tmp_path.iterdir())


def test_the_library_that_was_brought_along_is_put_in_its_place(monkeypatch, tmp_path):
    (tmp_path / "carry").mkdir()
    (tmp_path / "carry" / "_C.abi3.so").write_text("brought along")
    monkeypatch.setattr(device, "CARRIED", tmp_path / "carry")
    monkeypatch.setattr(device, "LIBRARY", tmp_path / "_C.abi3.so")
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "machine", lambda: {"device": "NVIDIA H200"})
    monkeypatch.setattr(sys, "argv", ["device.py", "--facts", str(tmp_path / "facts.json")])
    assert device.main() == 0
    assert (tmp_path / "_C.abi3.so").read_text() == "brought along"
    assert json.loads((tmp_path / "facts.json").read_text()) == {"device": "NVIDIA H200"}


@pytest.fixture
def unnoted(monkeypatch):
    """Shares of the error budget of planted faults are not those of the run."""
    monkeypatch.setattr(budget, "worst", {})


def test_the_probe_checks_one_backend(unnoted, capsys, monkeypatch):
    assert (probe.check("cpu"), probe.check("cuda")) == (0, 77)
    right, missing = capsys.readouterr().out.splitlines()
    assert right.startswith("cpu: right, 0.") and missing.startswith("cuda: not available: ")
    wrong = "benchmarks.suites.block.mod_block"
    monkeypatch.setattr(wrong, lambda **arguments: mod_block(**arguments) * 1.1)
    with pytest.raises(AssertionError, match="over the budget"):
        probe.check("cpu")


def test_one_backend_that_dies_costs_no_other(capfd, monkeypatch, tmp_path):
    script = "import os, sys; print(sys.argv[1], flush=True); sys.argv[1] == 'triton' and os.abort()"
    (tmp_path / "stand_in.py").write_text(script)
    monkeypatch.setattr(probe, "COMMAND", (sys.executable, tmp_path / "stand_in.py"))
    monkeypatch.setattr(sys, "argv", ["probe.py"])
    assert probe.main() == 1
    said = capfd.readouterr().out.split("\n")
    assert {"auto", "cpu", "cuda", "triton", "reference"} < set(said) and "failed: triton" in said


def test_the_sweep_times_libraries_and_checks_every_tile(unnoted, monkeypatch, tmp_path):
    [subject] = attention_sweep.subjects()
    case = subject.make(0)
    tiles = {c.name: c for c in subject.candidates if c.ours}
    assert list(tiles) == ["triton", "triton 16 x 16 x 4 x 1", "triton 32 x 16 x 4 x 1"]
    tiles["triton 16 x 16 x 4 x 1"].verify(case)  # in the interpreter
    assert [c.name for c in subject.candidates if not c.ours] == list(attention_sweep.LIBRARIES)

    def wrong(**arguments):
        return attention(**arguments | {"backend": "sdpa"}) * 1.1

    monkeypatch.setattr(attention_sweep, "attention", wrong)
    with pytest.raises(AssertionError, match="attention triton 32 x 16 x 4 x 1: .* over the budget"):
        tiles["triton 32 x 16 x 4 x 1"].verify(case)
    monkeypatch.setattr(sys, "argv", ["attention_sweep", "--out", str(tmp_path)])
    assert attention_sweep.main() == 1
    [path] = tmp_path.iterdir()
    rows = {row["name"]: row for row in read(path)}
    assert rows["triton"]["failed"] and "seconds" not in rows["sdpa"] and "failed" not in rows["sdpa"]


def test_a_warm_up_runs_every_job_once_whatever_fails(capsys, monkeypatch):
    ran = []

    def fail(case):
        raise RuntimeError("no kernel\nfor this")

    names = "abcdefg"
    candidates = [Candidate(n, fail if n == "c" else lambda case, n=n: ran.append(n)) for n in names]
    one = Subject("op", "add", torch.float32, {}, lambda seed: None, 8, tuple(candidates))
    monkeypatch.setattr(warm_up, "measured", lambda: [one])
    monkeypatch.setattr(warm_up, "GPU", False)
    for first in range(3):
        warm_up.run_share(first, 3)
    assert sorted(ran) == list("abdefg")
    assert capsys.readouterr().out == "add, c: no kernel\n"


def test_a_warm_up_takes_the_sizes_of_the_steps(monkeypatch):
    words = {"batch": (16, 2), "kept": (0.5,), "text": 300}
    monkeypatch.setattr(warm_up, "GPU", True)
    first, second = warm_up.options_of(words)
    assert (first.batch, second.batch, first.kept, first.text) == (16, 2, (0.5,), 300)
    assert (first.device, first.dtype, first.compile_mode) == ("cuda", torch.bfloat16, "default")
    monkeypatch.setattr(warm_up, "GPU", False)
    [tiny] = warm_up.options_of(words)
    assert (tiny.batch, tiny.tokens, tiny.device, tiny.compile_mode) == (1, 16, "cpu", None)
