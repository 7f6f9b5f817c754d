"""tools/gpu/carry.py: what a GPU machine without network is brought."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path, PurePosixPath

import pytest

from tools.gpu import carry as script

ROOT = Path(__file__).parents[2]


@pytest.fixture
def carry(monkeypatch, tmp_path):
    """The script, with a library and a folder of its own."""
    monkeypatch.setattr(script, "CARRIED", tmp_path / "carry")
    (tmp_path / "_C.abi3.so").write_text("library")
    monkeypatch.setattr(script, "LIBRARY", tmp_path / "_C.abi3.so")
    return script


def test_packages_are_carried_with_what_they_require(carry, capsys, monkeypatch, tmp_path):
    """rich requires pygments, tqdm nothing; numpy comes with torch."""
    assert carry.main(("rich", "numpy", "tqdm")) == 0
    folder, said = tmp_path / "carry", capsys.readouterr().out
    assert (folder / "_C.abi3.so").read_text() == "library"
    assert (folder / "rich" / "rich" / "table.py").exists() and (folder / "pygments" / "pygments").is_dir()
    assert not (folder / "numpy").exists() and not list(folder.rglob("*.pyc"))
    assert "MiB  rich " in said and f"in {folder.name}/" in said
    assert carry.missing_here(folder) == []
    here = carry.distribution

    def distribution(name):
        if name == "rich":
            raise PackageNotFoundError
        return here(name)

    monkeypatch.setattr(carry, "distribution", distribution)
    assert carry.missing_here(folder) == [folder / "rich"]
    environment = os.environ | {"PYTHONPATH": str(folder / "rich")}
    where = [sys.executable, "-c", "import rich; print(rich.__file__)"]
    found = subprocess.run(where, env=environment, capture_output=True, text=True).stdout
    assert found.startswith(str(folder))


def test_what_is_compiled_for_one_python_is_carried_by_name_only(carry, capsys, monkeypatch, tmp_path):
    class Package:
        version, requires, files = "1.0", (), (PurePosixPath("one/_one.cpython-311-x86_64-linux-gnu.so"),)

        def locate_file(self, file):
            return tmp_path / file

    (tmp_path / "one").mkdir()
    (tmp_path / Package.files[0]).write_text("module")
    monkeypatch.setattr(carry, "required", lambda names: {"one": Package()})
    carry.main(("two",))
    assert "left out, compiled for Python" in capsys.readouterr().out
    assert not (tmp_path / "carry" / "one").exists()
    carry.main(("one",))
    assert (tmp_path / "carry" / "one" / Package.files[0]).exists()


def test_without_a_library_nothing_is_carried(carry, capsys, tmp_path):
    (tmp_path / "_C.abi3.so").unlink()
    assert carry.main(()) == 1 and "is not built" in capsys.readouterr().out


def test_a_package_that_is_asked_for_and_not_there_is_named(carry):
    with pytest.raises(SystemExit, match="^no-such-package is not installed here"):
        carry.main(("rich", "no-such-package"))
