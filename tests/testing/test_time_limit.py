"""Control: a test that hangs ends at the suite's limit per test, in Python and in C code that keeps the
interpreter's lock, and the tests after it run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HANGS = """
import ctypes

def test_hangs_in_python():
    while True:
        pass

def test_hangs_in_c():
    ctypes.PyDLL(None).pause()

def test_passes():
    pass
"""


@pytest.fixture
def run(tmp_path):
    """pytest on a file of tests that hang, as the suite is run but with a limit of one second."""
    (tmp_path / "test_hangs.py").write_text(HANGS)
    limit = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-o", "faulthandler_timeout=1"]

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "pytest", *limit, *arguments, "test_hangs.py"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


def test_a_hanging_test_fails_and_the_next_ones_run(run):
    done = run("-n", "1")
    assert done.returncode == 1 and "2 failed, 1 passed" in done.stdout
    assert "crashed while running 'test_hangs.py::test_hangs_in_python'" in done.stdout
    assert "crashed while running 'test_hangs.py::test_hangs_in_c'" in done.stdout


def test_a_hanging_test_ends_a_run_of_one_process_and_is_named(run):
    done = run("-k", "in_c", "-p", "no:xdist")
    assert done.returncode == 1
    assert "Timeout" in done.stderr and "in test_hangs_in_c" in done.stderr
