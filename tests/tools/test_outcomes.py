"""tools/gpu/outcomes.py: no name of a test is lost when a run is killed, nor to a device that is lost."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.gpu import outcomes

ROOT = Path(__file__).parents[2]
# Stand-ins, so that a run takes no second: one test loses the device of its process.
TORCH = """
class cuda:
    lost = False
    def is_initialized():
        return True
    def synchronize():
        if cuda.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""
TESTS = """
import time, pytest, torch
from diffratio_kernels.testing import budget

def test_right():
    budget.worst["mod_block"] = 0.25

def test_wrong():
    budget.worst["mod_block"] = 1.5
    assert False, "over the budget\\nby far"

def test_skipped():
    pytest.skip("no CUDA device")

def test_loses_the_device():
    torch.cuda.lost = True
    raise RuntimeError("illegal memory access")

def test_on_the_device():
    torch.cuda.synchronize()

def test_slow():
    time.sleep(SECONDS)
"""


@pytest.fixture
def project(tmp_path):
    """A folder of tests; called with seconds and words it starts pytest there."""
    package = tmp_path / "diffratio_kernels" / "testing"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "budget.py").write_text("worst = {}\n")
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def start(seconds, *words):
        (tmp_path / "test_all.py").write_text(TESTS.replace("SECONDS", str(seconds)))
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tools.gpu.outcomes", *words]
        return subprocess.Popen(
            [sys.executable, *command, "--outcomes", "outcomes.jsonl"],
            cwd=tmp_path,
            env=os.environ | path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    start.file = tmp_path / "outcomes.jsonl"
    return start


def test_names_reasons_and_budgets_are_there_when_the_run_is_killed(project):
    run = project(60, "-k", "right or wrong or skipped or slow")
    until = time.monotonic() + 60
    while '"test_all.py::test_slow", "outcome": "started"' not in (
        project.file.read_text() if project.file.exists() else ""
    ):
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.communicate()
    found = outcomes.read_outcomes(project.file)
    assert found["tests"] == {"passed": 1, "failed": 1, "skipped": 1, "unfinished": 1}
    assert found["failed"] == {"test_all.py::test_wrong": "AssertionError: over the budget"}
    assert found["unfinished"] == ["test_all.py::test_slow"] and found["budget"] == {"mod_block": 1.5}
    [skip] = [line for line in map(json.loads, project.file.open()) if line["outcome"] == "skipped"]
    assert skip["reason"] == "Skipped: no CUDA device"


def test_a_lost_device_costs_the_test_that_lost_it_and_no_other(project):
    run = project(0, "-n", "1", "-k", "right or device or slow")
    _, said = run.communicate(timeout=60)
    found = outcomes.read_outcomes(project.file)
    assert run.returncode == 1
    assert found["failed"] == {"test_all.py::test_loses_the_device": "RuntimeError: illegal memory access"}
    assert found["tests"] == {"passed": 3, "failed": 1, "skipped": 0, "unfinished": 0}
    assert "test_loses_the_device: the device is lost" in said


def test_a_file_that_cannot_be_imported_fails_by_name_and_the_others_run(project):
    (project.file.parent / "test_broken.py").write_text("import no_such_package\n")
    run = project(0, "--continue-on-collection-errors", "-k", "right or broken")
    run.communicate(timeout=60)
    found = outcomes.read_outcomes(project.file)
    assert run.returncode == 1 and found["tests"]["passed"] == 1
    assert found["failed"] == {"test_broken.py": "E   ModuleNotFoundError: No module named 'no_such_package'"}
