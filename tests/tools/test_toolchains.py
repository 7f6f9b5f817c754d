"""`make toolchains`: what fails it, and that no step is lost to another's failure."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.toolchains import known_spills
from tools.toolchains import toolchains as run
from tools.toolchains.without_cuda import add_empty_libraries

GOOD = {
    "source": "triton", "kernel": "gather_adaln_bwd", "label": "D=384 gather", "dtype": "bf16",
    "architecture": 80, "registers": 64, "stack": 0, "local": 0, "shared": 0, "spills": 0,
    "wrong_descriptors": 0, "touched_in_flight": 0, "threads": 64, "occupancy": 1.0, "matrix": {},
    "loads": {}, "async": {}, "mma_useful": None,
}  # fmt: skip
NAME = "triton gather_adaln_bwd D=384 gather bf16 sm_80"
SPILLING = GOOD | {"spills": 4, "stack": 16}


def made_by(triton: str, *rows: dict) -> dict:
    """A report of `make kernels`."""
    return {"toolchain": {"triton": triton, "ptxas": "12.8", "nvcc": "13.0"}, "rows": [*rows]}


@pytest.mark.parametrize(
    ("row", "listed", "wrong"),
    [
        (GOOD, {}, []),
        (SPILLING, {}, ["spills 4, must be 0", "stack 16, must be 0"]),
        (SPILLING, {NAME: 4}, []),
        (SPILLING, {NAME: 3}, ["spills 4, must be 0", "stack 16, must be 0"]),
        (GOOD, {NAME: 4}, ["keeps the rules, remove it from the list"]),
        (SPILLING, {NAME: 4, "triton gone": 1}, ["is in the list, but no kernel"]),
        (SPILLING | {"shared": 2**20}, {NAME: 4}, ["1048576 bytes of shared memory"]),
    ],
)
def test_the_list_excuses_what_it_names_and_must_shrink(row, listed, wrong):
    golden, known = made_by("3.7.1", GOOD), {"spills": {"3.9.0": listed, "3.6.0": {NAME: 99}}}
    found, count = known_spills.judged(made_by("3.9.0", row), "3.9.0", known, golden)
    assert len(found) == len(wrong) and all(words in line for words, line in zip(wrong, found, strict=True))
    assert count == len(listed)


def test_a_row_of_the_golden_file_that_was_not_compiled_fails():
    other = GOOD | {"label": "D=1152 gather"}
    for version in ("3.7.1", "3.9.0"):
        golden = made_by("3.7.1", GOOD, other)
        found, _ = known_spills.judged(made_by(version, GOOD), version, {"spills": {}}, golden)
        assert found == ["triton gather_adaln_bwd D=1152 gather bf16 sm_80: lost"]


def test_figures_are_held_against_the_golden_file_where_the_same_compilers_made_them():
    fewer = GOOD | {"registers": 63}
    for version, wrong in (("3.7.1", 1), ("3.9.0", 0)):
        found, _ = known_spills.judged(
            made_by(version, GOOD), version, {"spills": {}}, made_by("3.7.1", fewer)
        )
        assert len(found) == wrong and all(line.startswith("registers") for line in found)


def test_the_list_gives_a_reason_and_names_rows_of_the_golden_file():
    known, golden = (json.loads(path.read_text()) for path in (known_spills.KNOWN, known_spills.GOLDEN))
    assert known["reason"] and known["spills"].keys() <= run.TRITONS.keys()
    names = {known_spills.name(row) for row in golden["rows"]}
    for listed in known["spills"].values():
        assert listed.keys() <= names and all(count > 0 for count in listed.values())
    assert golden["toolchain"]["triton"] not in known["spills"], (
        "the golden file's compiler has no exceptions"
    )


def child(monkeypatch, stdout="", stderr="", returncode=0):
    """Every child of the runner prints this."""
    done = subprocess.CompletedProcess([], returncode, stdout, stderr)
    monkeypatch.setattr(run, "run", lambda *_, **__: done)
    monkeypatch.setattr(run, "with_triton", lambda version: [])


def report(version: str) -> str:
    return json.dumps({"toolchain": {"triton": version}, "rows": [GOOD]})


@pytest.mark.parametrize(
    ("version", "stderr", "words"),
    [
        ("3.9.0", "", []),
        ("3.8.0", "", ["ran with Triton 3.8.0, not with 3.9.0"]),
        ("3.9.0", "knobs.py:504: UserWarning: the default will change", ["the default will change"]),
    ],
)
def test_a_gate_of_another_triton_or_with_a_warning_fails(monkeypatch, version, stderr, words):
    monkeypatch.setattr(run, "judged", lambda found, version: ([], 2))
    child(monkeypatch, report(version), stderr)
    found = run.outcome("gate", run.steps()["gate, Triton 3.9.0"])
    assert len(found.failures) == len(words) and all(
        w in f for w, f in zip(words, found.failures, strict=True)
    )
    assert (found.rows, found.listed) == (1, 2)


@pytest.mark.parametrize(
    ("stdout", "returncode", "failures", "tests"),
    [
        ("5 passed in 1 s", 0, [], 5),
        ("FAILED tests/a.py::b - assert\n1 failed, 4 passed", 1, ["FAILED tests/a.py::b - assert"], 4),
        ("no tests ran in 1 s", 5, ["pytest ended with 5"], 0),
        ("3 skipped in 1 s", 0, ["pytest ended with 0"], 0),
        ("killed", -9, ["pytest ended with -9"], 0),
    ],
)
def test_tests_that_fail_or_do_not_run_fail_the_step(monkeypatch, stdout, returncode, failures, tests):
    versions = json.dumps(["3.11.7", "2.13.0+cpu", "3.9.0", None])
    done = SimpleNamespace(stdout=stdout, returncode=returncode)
    monkeypatch.setattr(run, "run", lambda name, *_, **how: SimpleNamespace(stdout=versions) if how else done)
    found = run.tested("name", "python", [], [], "3.9.0")
    assert [f[: len(words)] for f, words in zip(found.failures, failures, strict=True)] == failures
    assert found.tests == tests


def test_a_step_without_its_versions_or_the_native_library_fails(monkeypatch):
    versions = json.dumps(["3.11.7", "2.13.0", "3.7.1", "it was not built"])
    outputs = {True: versions, False: "5 passed"}
    monkeypatch.setattr(
        run, "run", lambda *_, **how: SimpleNamespace(stdout=outputs["check" in how], returncode=0)
    )
    found = run.tested("name", "python", [], [], "3.10", "2.10.0", "3.7.1")
    ran = "Python 3.11.7, torch 2.13.0, Triton 3.7.1"
    assert found.failures == [
        f"ran with {ran}, not with 3.10",
        f"ran with {ran}, not with 2.10.0",
        "native library: it was not built",
    ]


def test_whatever_stops_a_step_the_others_go_on(monkeypatch, capsys):
    def stops(name):
        raise subprocess.TimeoutExpired("pip", 3600)

    def cannot(name):
        raise run.NotRun("no python3.10 that makes environments")

    steps = {"first": stops, "second": cannot, "third": lambda name: run.Outcome(name, tests=7)}
    monkeypatch.setattr(run, "steps", lambda: steps)
    monkeypatch.setattr(sys, "argv", ["toolchains.py"])
    assert run.main() == 1
    heading, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "1 failures" in lines[0] and "TimeoutExpired" in lines[1]
    assert "not run: no python3.10" in lines[2] and lines[3].split() == ["third", "0", "7", "0", "failures"]
    monkeypatch.setattr(sys, "argv", ["toolchains.py", "--json", "d"])
    assert run.main() == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["second", "third"]
    monkeypatch.setattr(sys, "argv", ["toolchains.py", "fourth"])
    with pytest.raises(SystemExit, match="2"):
        run.main()


def test_a_python_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "BUILD", tmp_path)
    with pytest.raises(run.NotRun, match="no python9.9"):
        run.environment("9.9", "2.13.0", "3.7.1")


USER = """
int cublasHere(void);
int ncclThere(void);
int ask(void) { return cublasHere() + ncclThere(); }
"""


def shared(path: Path, code: str, *options):
    """Compile a shared library."""
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", *options, "-o", path]
    subprocess.run(command, input=code, text=True, check=True)


def test_a_library_that_links_against_cuda_loads_with_empty_ones(tmp_path):
    """One symbol has a version, as cuBLAS's have, one has none."""
    here, there, user = (tmp_path / name for name in ("libcublas.so.13", "libnccl.so.2", "libuser.so"))
    versions = tmp_path / "versions"
    versions.write_text("libcublas.so.13 { global: cublasHere; };")
    script = f"-Wl,--version-script={versions}"
    shared(here, "int cublasHere(void) { return 1; }", "-Wl,-soname,libcublas.so.13", script)
    shared(there, "int ncclThere(void) { return 2; }", "-Wl,-soname,libnccl.so.2")
    shared(user, USER, here, there, "-Wl,-rpath,$ORIGIN")
    assert add_empty_libraries(tmp_path) == [], "they are all there"
    here.unlink()
    there.unlink()
    with pytest.raises(OSError, match=r"lib(cublas|nccl)\.so"):
        ctypes.CDLL(str(user))
    assert add_empty_libraries(tmp_path) == [here.name, there.name]
    assert ctypes.CDLL(str(user)).ask() == 200
