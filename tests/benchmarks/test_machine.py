"""Which sources were measured."""

import subprocess

import pytest

from benchmarks.harness.machine import RESULTS, commit


@pytest.fixture
def checkout(tmp_path):
    """A repository with one source and what a run on a GPU writes."""

    def git(*command):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a", *command], cwd=tmp_path, check=True)

    written = [
        f"{name}/a" if name in ("benchmarks/results", "docs/performance") else name for name in RESULTS
    ]
    for name in ("kernel.py", *written):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    return tmp_path, written


def test_results_pictures_and_the_document_are_no_change_of_the_sources(checkout):
    root, written = checkout
    assert "docs/performance.md" in written
    head = commit(root)
    for name in written:
        (root / name).write_text("new")
    assert commit(root) == head and "+" not in head
    (root / "kernel.py").write_text("new")
    assert commit(root) == head + "+changes"
