"""`make gpu` with steps of its own: order, limits, what is kept, what the exit code says."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tools.gpu import looks, runner

ROOT = Path(__file__).parents[2]
PASS, FAIL, IN_PART, MISSING = (
    f"{{python}} -c \"import sys; print('the end of the log'); sys.exit({code})\"" for code in (0, 5, 75, 77)
)


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The runner, whose results go to a folder of its own."""
    monkeypatch.setattr(runner, "WORK", tmp_path / "work")
    monkeypatch.setattr(runner, "commit", lambda: "0123abc")
    monkeypatch.setattr(runner, "missing_here", lambda: [])
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return runner


@pytest.fixture
def step(gpu):
    """A step by name, that passes at once unless it is told otherwise."""

    def make(name, command=PASS, limit=20, predicted=0, **options):
        return gpu.Step(name, f"the step {name}", command, limit, predicted, **options)

    return make


@pytest.fixture
def look(gpu, monkeypatch, capsys):
    """Called with steps and words of the command line it runs them as the first look; exit code, output."""

    def run(*steps, words=()):
        monkeypatch.setitem(gpu.LOOKS, "correct", looks.Look("", steps))
        monkeypatch.setattr(sys, "argv", ["runner", *words])
        code = gpu.main()
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def entries(tmp_path):
    """Called: name -> what the archive says that the step came to."""

    def read(name="correct"):
        with tarfile.open(tmp_path / "out" / f"gpu-{name}.tar.gz") as archive:
            return json.load(archive.extractfile(f"{name}/results.json"))["steps"]

    return read


def statuses(found):
    return {name: entry["status"] for name, entry in found.items()}


def test_steps_run_in_order_and_all_of_it_is_in_one_archive(look, step, entries, tmp_path):
    code, said = look(step("one", predicted=2), step("two"))
    assert code == 0 and said.index("[1/2] one: the step one ... passed") < said.index("[2/2] two: ")
    assert "the end of the log" not in said and str(tmp_path / "out" / "gpu-correct.tar.gz") in said
    one = entries()["one"]
    assert (one["status"], one["limit"], one["predicted"], one["commit"]) == ("passed", 20, 2, "0123abc")
    with tarfile.open(tmp_path / "out" / "gpu-correct.tar.gz") as archive:
        assert archive.extractfile("correct/two.log").read() == b"the end of the log\n"


def test_the_list_runs_nothing_and_adds_up(look, step, tmp_path):
    steps = step("one", FAIL, limit=7, predicted=5), step("two", FAIL, limit=4, predicted=3)
    code, said = look(*steps, words=["--list"])
    lines = [line.split() for line in said.splitlines()]
    assert code == 0 and ["one", "5", "7", "the", "step", "one"] in lines
    assert lines[lines.index([]) - 1][:3] == ["all", "38", "41"]  # 30 of them to start the machine
    assert not (tmp_path / "out").exists()


def test_the_archive_is_written_after_every_step(look, step, entries, tmp_path):
    """The second step finds the first one's results in it."""
    archive = tmp_path / "out" / "gpu-correct.tar.gz"
    names = f"import tarfile; assert 'correct/one.log' in tarfile.open('{archive}').getnames()"
    code, _ = look(step("one", FAIL), step("two", f'{{python}} -c "{names}"'))
    assert (code, statuses(entries())) == (1, {"one": "failed", "two": "passed"})


def test_a_failure_shows_its_log_and_the_others_go_on(look, step):
    code, said = look(step("bad", FAIL), step("good"))
    assert code == 1 and "bad: the step bad ... failed" in said and "    the end of the log\n" in said
    assert "good: the step good ... passed" in said


def test_a_step_is_stopped_at_its_limit_with_all_its_processes(look, step, entries, tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    ticks = f"import time; f = open('{tmp_path}/ticks', 'ab', 0); "
    ticks += "[(f.write(b'.'), time.sleep(0.05)) for _ in range(1200)]"
    result, _ = look(step("slow", f'{{python}} -c "{code}" "{ticks}"', limit=3), step("next"))
    assert (result, statuses(entries())) == (1, {"slow": "cut off", "next": "passed"})
    before = (tmp_path / "ticks").stat().st_size
    time.sleep(0.3)
    assert 0 < before == (tmp_path / "ticks").stat().st_size


def test_time_that_is_left_over_goes_to_the_next_and_none_is_taken_away(look, step, entries):
    sleeps = '{python} -c "import time; time.sleep(60)"'
    start = time.monotonic()
    look(step("slow", sleeps, limit=0.5), step("quick", limit=20), step("needs more", limit=0, predicted=15))
    assert statuses(entries()) == {"slow": "cut off", "quick": "passed", "needs more": "passed"}
    assert time.monotonic() - start < 15


def test_without_the_time_that_it_takes_a_step_is_not_started(look, step, entries):
    code, said = look(step("one", limit=5), step("spare", limit=0, predicted=30), step("last"))
    assert (code, entries()["spare"]["status"]) == (3, "no time left") and "no time left" in said
    assert entries()["last"]["status"] == "passed"


def test_what_ends_by_its_own_clock_has_passed_in_part(look, step, entries):
    assert look(step("tune", IN_PART))[0] == 0
    assert entries()["tune"]["status"] == "passed in part"


def test_what_is_not_available_is_neither_passed_nor_failed(look, step, entries):
    assert look(step("tool", MISSING), step("model", needs="no_such_package"), step("one"))[0] == 3
    assert statuses(entries()) == {"tool": "not available", "model": "not available", "one": "passed"}


def test_nothing_is_started_without_what_is_essential(look, step, entries):
    for command, code in ((FAIL, 1), (MISSING, 3)):
        found, said = look(step("device", command, essential=True), step("one"))
        assert found == code and "nothing runs without 'device'" in said and "one: " not in said
    assert look(step("device", MISSING, essential=True), step("one"), words=["--dry-run"])[0] == 3
    assert statuses(entries("correct-dry-run")) == {"device": "not available", "one": "passed"}


def test_a_step_run_again_alone_replaces_what_it_came_to(look, step, entries, capsys):
    look(step("one", FAIL), step("two"), step("three", FAIL))
    steps = step("one"), step("two"), step("three")
    code, said = look(*steps, words=["--step", "one", "--step", "two"])
    assert code == 0 and "three: " not in said
    assert statuses(entries()) == {"one": "passed", "two": "passed", "three": "failed"}
    with pytest.raises(SystemExit, match="2"):
        look(*steps, words=["--step", "four"])
    assert "no such step in correct: four" in capsys.readouterr().err


def test_a_dry_run_takes_the_rehearsal_and_has_an_archive_of_its_own(look, step, entries):
    look(step("bench", FAIL, rehearsal=PASS, predicted=99), step("probe"), words=["--dry-run"])
    assert statuses(entries("correct-dry-run")) == {"bench": "passed", "probe": "passed"}


def test_packages_that_were_brought_along_are_found(look, step, entries, gpu, monkeypatch, tmp_path):
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "only_there.py").write_text("")
    monkeypatch.setattr(gpu, "missing_here", lambda: [tmp_path / "brought"])
    code, _ = look(step("one", '{python} -c "import only_there"', needs="only_there"))
    assert code == 0, entries()


def test_all_steps_share_the_compilers_caches_and_what_they_compiled_is_counted(gpu, look, step, entries):
    write = (
        "import os, pathlib; f = pathlib.Path(os.environ['TRITON_CACHE_DIR']) / 'KEY'; "
        "f.mkdir(parents=True); (f / 'k.source').touch(); (f / '__grp__k.json').touch(); "
        "os.utime(f / 'k.source', (1e9, (f / '__grp__k.json').stat().st_mtime - 2))"
    )
    _, said = look(step("compiles", f'{{python}} -c "{write}"'), step("finds it"))
    assert entries()["compiles"]["compiled"] == {"kernels": 1, "seconds": 2.0}
    assert entries()["finds it"]["compiled"] == {"kernels": 0, "seconds": 0}
    assert "1 kernels compiled in 2 s" in said


def test_a_kernel_that_triton_compiled_is_counted(gpu, tmp_path):
    """In a process of its own: where the interpreter runs, nothing is compiled."""
    compile_one = (
        "from tools.aot import compile, record, shipped; "
        "one = next(shipped.configurations()); "
        "compile.compile_kernel(record.record(90, one.function, *one.arguments)[0], 90)"
    )
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    environment = inherited | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", compile_one], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = gpu.compiled(tmp_path, start)
    # A fast processor compiles within one tick of the file system's clock.
    assert found["kernels"] == 1 and 0 <= found["seconds"] < time.time() - start
    assert gpu.compiled(tmp_path, time.time() + 1)["kernels"] == 0


def test_what_tests_came_to_is_in_the_results(look, step, entries, tmp_path):
    lines = [
        {"test": "test_a", "outcome": "passed", "budget": {"mod_block": 0.5}},
        {"test": "test_b", "outcome": "failed", "reason": "over the budget"},
        {"test": "test_c", "outcome": "started"},
    ]
    (tmp_path / "lines").write_text("".join(json.dumps(line) + "\n" for line in lines))
    copy = f"import shutil, sys; shutil.copy('{tmp_path}/lines', sys.argv[1]); sys.exit(1)"
    _, said = look(step("tests", f'{{python}} -c "{copy}" {{outcomes}}'))
    assert "failed, 0 s, 1 passed, 1 failed, 1 unfinished" in said
    assert "    test_b: over the budget\n    test_c: was running\n" in said
    found = entries()["tests"]
    assert found["failed"] == {"test_b": "over the budget"} and found["unfinished"] == ["test_c"]
    assert found["budget"] == {"mod_block": 0.5}


def test_tests_that_were_all_skipped_have_shown_nothing(look, step, entries, tmp_path):
    (tmp_path / "lines").write_text('{"test": "test_a", "outcome": "skipped", "reason": "no CUDA device"}\n')
    copy = f"import shutil, sys; shutil.copy('{tmp_path}/lines', sys.argv[1])"
    assert look(step("tests", f'{{python}} -c "{copy}" {{outcomes}}'))[0] == 3
    assert entries()["tests"]["status"] == "not available"
