"""The package as users have it: a wheel, installed outside of the checkout beside what one extra brings.

An environment of its own for each extra would copy gigabytes. Here it is a virtual environment that holds
links to those distributions of the environment under test that the extra's requirements lead to, and nothing
else; the wheel itself is built and installed by pip.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip")
SOURCES = "CMakeLists.txt LICENSE MANIFEST.in README.md csrc diffratio_kernels pyproject.toml python setup.py"


class Installed:
    """An environment: its `python`, its `site` and a folder to work in, which knows no checkout."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        [self.site] = folder.glob("lib/python*/site-packages")
        self.work = folder / "work"
        self.work.mkdir()

    def call(self, *command: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess:
        """Run an executable of the environment, "python" or "diffratio"."""
        hidden = ("PYTHON", "DIFFRATIO", "TRITON")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        return subprocess.run(
            [self.python.with_name(str(command[0])), *map(str, command[1:])],
            cwd=self.work,
            env=inherited | {"HF_HUB_OFFLINE": "1"} | environment,
            input=stdin,
            capture_output=True,
            text=True,
        )


def sources(folder: Path) -> Path:
    """A copy of what the package is built from, without the library that lies in the checkout."""
    for name in SOURCES.split():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def pip_wheel(source: Path, out: Path, **environment: str) -> Path:
    """The wheel that pip builds with the environment's own torch."""
    command = [*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = out.glob("*.whl")
    return wheel


def pip_install(wheel: Path, into: Installed) -> None:
    command = [*PIP, "--python", into.python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, capture_output=True)


def distributions(roots: list[str], package: Distribution) -> list[Distribution]:
    """What the requirements lead to in the environment under test; `package` is the wheel's own."""
    found, seen, open_ = {}, set(), [Requirement(root) for root in roots]
    while open_:
        one = open_.pop()
        name = one.name.lower().replace("_", "-")
        if name not in found:
            found[name] = package if name == "diffratio-kernels" else _distribution(name)
        for extra in {"", *one.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            needed = map(Requirement, (found[name] and found[name].requires) or ())
            open_ += [more for more in needed if not more.marker or more.marker.evaluate({"extra": extra})]
    return [one for one in found.values() if one is not None]


def _distribution(name: str) -> Distribution | None:
    """None for a requirement that is not there: of another platform's build, say."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def link(found: list[Distribution], site: Path) -> None:
    """Links to every folder and file that the distributions have beside each other in site-packages."""
    for one in found:
        names = {file.parts[0] for file in one.files if file.parts[0] not in ("..", "__pycache__")}
        for name in names:
            if not (site / name).exists():
                (site / name).symlink_to(Path(one.locate_file(name)).resolve())


@pytest.fixture(scope="session")
def install(tmp_path_factory):
    """Environment variables -> the wheel that pip builds under them, installed by pip beside torch alone."""

    def made(**environment: str) -> Installed:
        source, out = sources(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel")
        one = Installed(tmp_path_factory.mktemp("installed"))
        pip_install(pip_wheel(source, out, **environment), one)
        link(distributions(["diffratio-kernels"], _package(one)), one.site)
        return one

    return made


@pytest.fixture(scope="session")
def bare(install) -> Installed:
    """No extra, and no native library: `pip install .` on a machine without a compiler."""
    return install(DIFFRATIO_BUILD_NATIVE="0")


@pytest.fixture(scope="session")
def files(bare) -> list[PurePosixPath]:
    """What the wheel put into site-packages, without what pip compiled of it."""
    listed = map(PurePosixPath, _package(bare).files)
    return [file for file in listed if file.parts[0] != ".." and file.suffix != ".pyc"]


@pytest.fixture(scope="session")
def installed(bare, tmp_path_factory):
    """Extra -> the environment that it leads to."""

    @cache
    def environment(extra: str | None) -> Installed:
        if extra is None:
            return bare
        made = Installed(tmp_path_factory.mktemp(extra))
        link(distributions([f"diffratio-kernels[{extra}]"], _package(bare)), made.site)
        return made

    return environment


def _package(environment: Installed) -> Distribution:
    [info] = environment.site.glob("diffratio_kernels-*.dist-info")
    return Distribution.at(info)
