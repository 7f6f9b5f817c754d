"""`make portable`: the cells cover every pair, and a cell that did not run as it says is no pass."""

import json
import re
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import pytest

from tools.portable import cells
from tools.portable import run as portable

ROOT = Path(__file__).parents[2]
TOOL = (sys.executable, "-m", "tools.portable.run")
TESTS = """
import pytest

def test_passes():
    pass

def test_is_skipped():
    pytest.skip("no reason")

@pytest.mark.parametrize("value", [1])
def test_fails(value):
    assert value == 2
"""


@pytest.fixture
def run(tmp_path):
    """Runs a file of tests in a cell."""

    def run(cell, tests):
        file = tmp_path / "test_written.py"
        file.write_text(tests)
        return portable.run(cell, [f"--rootdir={tmp_path}", str(file)], tmp_path)

    return run


@pytest.mark.parametrize(
    "lacking", [(), ("Zen",), ("Zen", "SkylakeX", "avx512", "MKL_avx2"), ("2",)], ids=str
)
def test_every_pair_of_usable_settings_is_in_a_cell(lacking):
    usable = [one for one in cells.SETTINGS if one.name not in lacking]
    matrix = cells.matrix(usable)
    there = {pair for cell in matrix for pair in combinations(cell.settings, 2)}
    axes = [[one for one in axis if one in usable] for axis in cells.AXES]
    assert all(pair in there for a, b in combinations(axes, 2) for pair in product(a, b))
    assert {one for cell in matrix for one in cell.settings} == set(usable)
    assert len({cell.name for cell in matrix}) == len(matrix) <= 14  # 4 minutes each: an hour
    assert {cell.name for cell in matrix} <= {cell.name for cell in cells.every_cell()}


def test_a_cell_decides_on_what_the_machine_sets(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    [cell] = [cell for cell in cells.every_cell() if cell.name == "Haswell-avx2-2"]
    found = portable.environment(cell.environment)
    assert found["OPENBLAS_CORETYPE"] == "Haswell" and found["OMP_NUM_THREADS"] == "2"
    assert found["OPENBLAS_L2_SIZE"] == "512" and "MKL_ENABLE_INSTRUCTIONS" not in found


def test_failures_are_counted_and_named(run):
    """In a cell of two processes, of which each proves its settings."""
    cell = cells.Cell((cells.TORCH[0], cells.THREADS[0]))
    result = run(cell, TESTS)
    assert (result.tests, result.skipped, result.problem) == (3, 1, None)
    assert result.failed == ["test_written.py::test_fails[1]"] and not result.passed
    [name] = [path for path in portable.failures([result])]
    assert portable.failures([result]) == {name: ["default-1"]}


def test_a_setting_that_is_not_in_effect_is_no_pass(run):
    """OpenBLAS takes another core type for one that it does not know, and says nothing."""
    unknown = cells.Setting("Unknown", {"OPENBLAS_CORETYPE": "Unknown"}, {"OpenBLAS": "Unknown"})
    result = run(cells.Cell((unknown, cells.THREADS[1])), "def test_passes(): pass")
    assert result.failed == [] and not result.passed
    assert re.fullmatch(r"OpenBLAS is \w+ instead of Unknown", result.problem)


def test_a_run_that_dies_or_runs_nothing_is_no_pass(run):
    cell = cells.Cell((cells.THREADS[1],))
    died = run(cell, "import os\ndef test_dies(): os.abort()")
    assert not died.passed and [name.split("::")[-1] for name in died.failed] == ["test_dies"]
    nothing = run(cell, "")
    assert not nothing.passed and "exit code 5" in nothing.problem


def fake(monkeypatch, outcomes):
    """The tool with two cells, whose outcomes are given."""
    two = portable.matrix()[:2]
    monkeypatch.setattr(portable, "all_reasons", lambda: {one: None for cell in two for one in cell.settings})
    monkeypatch.setattr(portable, "matrix", lambda usable: two)
    monkeypatch.setattr(portable, "run", lambda cell: outcomes[cell.name](cell.name))
    return [cell.name for cell in two]


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["portable", *arguments])
    return portable.main()


def test_the_exit_code_the_table_and_where_a_run_was_stopped(monkeypatch, capsys):
    outcomes = {}
    first, second = fake(monkeypatch, outcomes)

    def passes(name):
        return portable.Result(name, 5, 0, [], 1.0, None)

    def fails(name):
        return portable.Result(name, 5, 1, ["tests/test_a.py::test_b"], 1.0, None)

    def is_stopped(name):
        raise KeyboardInterrupt

    outcomes |= {first: passes, second: passes}
    assert command(monkeypatch) == 0
    assert f"[2/2] {second} ... 5 tests, 0 failed, 0 skipped, 1 s\n" in capsys.readouterr().out
    outcomes |= {second: fails}
    assert command(monkeypatch) == 1
    assert f"tests/test_a.py::test_b\n    failed in {second}\n" in capsys.readouterr().out
    assert command(monkeypatch, "--json") == 1
    [_, last] = json.loads(capsys.readouterr().out)["cells"]
    assert (last["cell"], last["failed"]) == (second, ["tests/test_a.py::test_b"])
    outcomes |= {second: is_stopped}
    assert command(monkeypatch) == 130
    assert f'stopped; the rest: make portable ARGS="--cell {second}"' in capsys.readouterr().out


def test_one_cell_is_picked_by_a_text(monkeypatch, capsys):
    names = fake(monkeypatch, {})
    picked = []
    for text in map(str, range(20)):
        assert command(monkeypatch, "--list", "--pick", text) == 0
        picked += capsys.readouterr().out.split()
    assert len(picked) == 20 and set(picked) == set(names)


def test_what_cannot_run_here_is_named():
    """With a real process for each setting; names of OpenBLAS's and torch's kernels are right or named."""
    done = subprocess.run([*TOOL, "--list", "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    settings = {name for cell in said["cells"] for name in cell.split("-")}
    every = {"Nehalem", "Haswell", "SkylakeX", "Zen", "default", "avx2", "avx512", "1", "2"}
    assert settings | set(said["not_here"]) == every | {"oneDNN_avx2", "MKL_avx2"}
    assert all(f"not here: cells of {name}: {why}\n" in done.stderr for name, why in said["not_here"].items())
    wrong = subprocess.run([*TOOL, "--cell", "Nehalem"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "no cell is called Nehalem" in wrong.stderr
