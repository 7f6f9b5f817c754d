"""Progress bars are for people who look: on a terminal, and only there."""

import ast
import io
import sys
from pathlib import Path

import pytest

from diffratio.progress import progress_bar

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "stream, show, shown", [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)]
)
def test_a_bar_shows_on_a_terminal_only(stream, show, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(progress_bar(range(3), show=show, desc="counting")) == [0, 1, 2]
    assert ("counting" in sys.stderr.getvalue()) is shown
    assert shown or sys.stderr.getvalue() == ""


def bars(path: Path) -> list[int]:
    """Lines on which a file makes a bar of its own."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "tqdm"]


def test_every_bar_is_of_that_kind():
    helper = ROOT / "python" / "diffratio" / "progress.py"
    folders = ("python", "benchmarks", "diffratio_kernels")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in files if bars(path)] == [helper]
