"""What the wheel holds: two packages, and nothing that only developers need."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
TOOLS = {path.name for path in (ROOT / "tools").iterdir() if path.is_dir()} - {"__pycache__"}
"""Folders of tools/."""


def of_developers(files: Iterable[PurePosixPath]) -> list[PurePosixPath]:
    """Files in a folder that is called as one of tools/, as a package of tests, or as benchmarks."""
    names = TOOLS | {"tools", "tests", "benchmarks"}
    return [file for file in files if names & {*file.parts[:-1]}]


def test_the_wheel_holds_two_packages(files):
    top = {file.parts[0] for file in files}
    assert {name for name in top if not name.endswith(".dist-info")} == {"diffratio", "diffratio_kernels"}
    assert {file.suffix for file in files if file.parts[0] == "diffratio_kernels"} == {".py", ".json"}


def test_nothing_of_developers_is_in_it(files):
    assert {"aot", "gpu", "guards", "mutants", "sim", "tune"} <= TOOLS
    assert of_developers(files) == []


def test_a_tool_in_the_wheel_is_seen():
    slipped = [PurePosixPath("diffratio_kernels/aot/rules.py"), PurePosixPath("tools/gpu/looks.py")]
    assert of_developers([PurePosixPath("diffratio_kernels/testing/cases.py"), *slipped]) == slipped


def test_for_tests_of_others_it_holds_the_budget_and_the_cases(files):
    testing = {file.name for file in files if file.parent == PurePosixPath("diffratio_kernels/testing")}
    assert testing == {"__init__.py", "budget.py", "cases.py"}
