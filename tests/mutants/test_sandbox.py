"""What a planted bug does to the tests is told apart: they fail, crash, hang, pass, or never judge."""

import pytest

from tools.mutants import sandbox

FILES = {
    "diffratio_kernels/__init__.py": b"def value():\n    return 1\n",
    "tests/test_value.py": (
        b"import diffratio_kernels\n\n\ndef test_value():\n    assert diffratio_kernels.value() == 1\n"
    ),
}


@pytest.mark.parametrize(
    "replacement, how, said",
    [
        ("return 1 + 0", "passed", ""),
        ("return 2", "failed", "assert 2 == 1"),
        ("import os; os.abort()", "crashed", "exit status -6"),
        ("while True: pass", "timeout", "more than 3 s"),
        ("return (", "broken", "SyntaxError"),
    ],
)
def test_outcomes(replacement, how, said, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "TIMEOUT", 3 if how == "timeout" else 60)  # a busy machine starts slowly
    box = sandbox.Sandbox(tmp_path, FILES)
    with box.planted("diffratio_kernels/__init__.py", {"return 1": replacement}):
        outcome = box.run("tests/test_value.py")
    assert (outcome.how, outcome.caught) == (how, how in ("failed", "crashed", "timeout"))
    assert said in outcome.message
    assert not outcome.caught or outcome.test == "tests/test_value.py::test_value"
    assert (tmp_path / "diffratio_kernels" / "__init__.py").read_bytes() == FILES[
        "diffratio_kernels/__init__.py"
    ]


def test_a_package_from_elsewhere_is_an_error(tmp_path):
    """Without a package of its own the copy would test the one that is installed."""
    tests_only = {name: text for name, text in FILES.items() if name.startswith("tests")}
    box = sandbox.Sandbox(tmp_path, tests_only)
    with pytest.raises(RuntimeError, match="imported"):
        box.run("tests/test_value.py")


def test_files_that_are_gone_leave_the_copy(tmp_path):
    sandbox.Sandbox(tmp_path, FILES | {"old.py": b""})
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "kept.o").write_text("")
    sandbox.Sandbox(tmp_path, FILES)
    assert not (tmp_path / "old.py").exists() and (tmp_path / "build" / "kept.o").exists()


@pytest.mark.parametrize("text", ["", "a = 1\na = 1\n"])
def test_a_text_that_is_not_there_once_is_an_error(text):
    with pytest.raises(ValueError, match="must occur once"):
        sandbox.mutated(text, {"a = 1": "a = 2"})


PROJECT = b"""cmake_minimum_required(VERSION 3.24)
project(native LANGUAGES NONE)
set(made ${CMAKE_BINARY_DIR}/_C.abi3.so)
add_custom_target(_C COMMAND ${CMAKE_COMMAND} -E copy ${CMAKE_SOURCE_DIR}/csrc/cpu/value.h ${made})
"""
NATIVE = {
    "CMakeLists.txt": PROJECT,
    "csrc/cpu/value.h": b"1",
    "diffratio_kernels/__init__.py": (
        b"import pathlib\n\n\ndef value():\n"
        b"    return int(pathlib.Path(__file__).with_name('_C.abi3.so').read_text())\n"
    ),
    "diffratio_kernels/_C.abi3.so": b"1",
}


def test_a_native_source_is_compiled_and_the_library_comes_back(tmp_path):
    box = sandbox.Sandbox(tmp_path, FILES | NATIVE)
    for replacement, how in (("2", "failed"), ("1 ", "passed")):
        with box.planted("csrc/cpu/value.h", {"1": replacement}):
            assert box.run("tests/test_value.py").how == how
        assert (tmp_path / "diffratio_kernels" / "_C.abi3.so").read_text() == "1"
    assert box.run("tests/test_value.py").how == "passed"


def test_a_native_source_that_does_not_compile_is_broken(tmp_path):
    wrong = {"CMakeLists.txt": PROJECT + b"message(FATAL_ERROR nothing)"}
    box = sandbox.Sandbox(tmp_path, FILES | NATIVE | wrong)
    with box.planted("csrc/cpu/value.h", {"1": "2"}):
        outcome = box.run("tests/test_value.py")
    assert outcome.how == "broken" and not outcome.caught and "nothing" in outcome.message
