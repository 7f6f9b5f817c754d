"""`make gpu` with pieces and a folder of its own: order, limits, resuming, what the exit code says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PASS, FAIL, LATER, MISSING = (
    f"{{python}} -c \"import sys; print('the end of the log'); sys.exit({code})\"" for code in (0, 5, 75, 77)
)


def piece(name, command=PASS, **options):
    return {"name": name, "what": f"the piece {name}", "command": command, "minutes": 1, **options}


@pytest.fixture
def project(tmp_path):
    """A folder with one source file; called with pieces and options it runs the runner there."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "kernel.cu").write_text("// first\n")
    no_git = {"DIFFRATIO_COMMIT": "0123abc", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}

    def run(*pieces, options=()):
        (tmp_path / "pieces.json").write_text(json.dumps(pieces))
        command = [ROOT / "benchmarks" / "gpu.py", "--pieces", "pieces.json", "--out", "results", *options]
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=os.environ | no_git, capture_output=True, text=True
        )

    run.folder, run.out = tmp_path, tmp_path / "out" / "gpu"
    return run


def statuses(project):
    state = json.loads((project.out / "state.json").read_text())
    return {name: entry["status"] for name, entry in state.items()}


def started(done):
    """Names of the pieces that a call started, in order."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("[") and " ... " in line]
    return [line.split("] ")[1].split(":")[0] for line in lines]


def test_pieces_run_in_order_and_what_they_came_to_is_kept(project):
    done = project(piece("one"), piece("two"))
    assert (done.returncode, started(done)) == (0, ["one", "two"]), done.stderr
    assert "[2/2] two: the piece two ... passed, " in done.stdout
    assert "the end of the log" not in done.stdout
    assert (project.out / "two.log").read_text() == "the end of the log\n"
    assert statuses(project) == {"one": "passed", "two": "passed"}
    [one, two] = json.loads((project.folder / "results" / "gpu-checks.json").read_text())["checks"]
    assert (one["name"], one["status"], two["name"], two["status"]) == ("one", "passed", "two", "passed")
    assert one["commit"] == "0123abc"


def test_a_failure_shows_its_log_and_alone_is_run_again(project):
    done = project(piece("bad", FAIL), piece("good"))
    assert (done.returncode, started(done)) == (1, ["bad", "good"])
    assert "bad: the piece bad ... failed" in done.stdout and "    the end of the log\n" in done.stdout
    again = project(piece("bad", FAIL), piece("good"))
    assert (again.returncode, started(again)) == (1, ["bad"])
    mended = project(piece("bad"), piece("good"))
    assert (mended.returncode, started(mended)) == (0, ["bad"])


def test_a_piece_is_stopped_at_its_limit_with_all_its_processes(project):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = "import time, pathlib; time.sleep(4); pathlib.Path('late').touch()"
    begin = time.monotonic()
    done = project(piece("slow", f'{{python}} -c "{code}" "{child}"', limit_minutes=1 / 60), piece("next"))
    assert time.monotonic() - begin < 4
    assert (done.returncode, started(done)) == (1, ["slow", "next"])
    assert statuses(project) == {"slow": "out of time", "next": "passed"}
    time.sleep(4)
    assert not (project.folder / "late").exists()


def test_what_goes_on_later_is_run_again(project):
    done = project(piece("tune", LATER), piece("one"))
    assert (done.returncode, statuses(project)) == (1, {"tune": "out of time", "one": "passed"})
    assert started(project(piece("tune", LATER), piece("one"))) == ["tune"]


def test_what_is_not_available_is_neither_passed_nor_failed(project):
    done = project(piece("tool", MISSING), piece("one"))
    assert (done.returncode, statuses(project)["tool"]) == (3, "not available")
    assert started(project(piece("tool", MISSING), piece("one"))) == ["tool"]


def test_without_the_package_it_needs_a_piece_is_not_available(project):
    done = project(piece("model", needs="no_such_package"), piece("one", needs="json"))
    assert (done.returncode, statuses(project)) == (3, {"model": "not available", "one": "passed"})
    assert (project.out / "model.log").read_text() == "no_such_package is not installed\n"


def test_changed_sources_are_run_again(project):
    assert project(piece("one")).returncode == 0
    assert started(project(piece("one"))) == []
    (project.folder / "csrc" / "notes.txt").write_text("no source\n")
    assert started(project(piece("one"))) == []
    (project.folder / "csrc" / "kernel.cu").write_text("// second\n")
    listed = project(piece("one"), options=["--list"])
    assert (listed.returncode, started(listed)) == (0, []) and "not run" in listed.stdout
    assert started(project(piece("one"))) == ["one"]


def test_without_what_it_makes_a_piece_is_not_done(project):
    build = piece("build", "{python} -c \"open('library.so', 'w')\"", makes="library.so")
    assert project(build).returncode == 0
    assert started(project(build)) == []
    (project.folder / "library.so").unlink()
    assert started(project(build)) == ["build"]


def test_nothing_is_started_after_an_essential_failure(project):
    for command, code in ((FAIL, 1), (MISSING, 3)):
        done = project(piece("build", command, essential=True), piece("one"))
        assert (done.returncode, started(done)) == (code, ["build"])
        assert done.stdout.endswith("    the end of the log\n")  # and not by what other pieces came to
        assert not (project.folder / "results").exists()


def test_a_piece_can_be_run_alone_also_when_it_is_done(project):
    pieces = piece("one"), piece("two"), piece("three")
    assert project(*pieces, options=["--piece", "two"]).returncode == 3
    done = project(*pieces, options=["--piece", "three", "--piece", "two"])
    assert started(done) == ["two", "three"]
    wrong = project(*pieces, options=["--piece", "four"])
    assert wrong.returncode == 2 and "no such piece: four" in wrong.stderr


def test_no_piece_is_started_that_would_end_too_late(project):
    done = project(piece("long", minutes=6), piece("short", minutes=2), options=["--minutes", "5"])
    assert (done.returncode, started(done)) == (3, ["short"])
    assert "long: no time left" in done.stdout
    slow = piece("slow", '{python} -c "import time; time.sleep(9)"', minutes=0)
    assert project(slow, options=["--minutes", "0.02"]).returncode == 1
    assert statuses(project)["slow"] == "out of time"


def test_the_shares_of_the_error_budget_are_kept(project):
    found = "dict(budget=dict(mod_block=0.5))"
    write = f"import os, json; json.dump({found}, open(os.environ['DIFFRATIO_BUDGET'], 'w'))"
    project(piece("checks", f'{{python}} -c "{write}"', budget=True), piece("others", FAIL))
    checks, others = json.loads((project.folder / "results" / "gpu-checks.json").read_text())["checks"]
    assert checks["budget"] == {"mod_block": 0.5} and "budget" not in others


def test_the_pieces_of_the_repository_name_files_that_exist():
    pieces = json.loads((ROOT / "benchmarks" / "gpu.json").read_text())
    assert len({entry["name"] for entry in pieces}) == len(pieces)
    for entry in pieces:
        assert entry["minutes"] <= 8 and entry.get("limit_minutes", 8) <= 8
        for word in entry["command"].split():
            if word.startswith(("tests/", "benchmarks/")):
                assert (ROOT / word).exists(), word
    tested = {word for entry in pieces for word in entry["command"].split() if word.startswith("tests/gpu/")}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "tests/gpu").glob("test_*.py")} == tested
