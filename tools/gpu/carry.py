"""One folder with all that a GPU machine without network lacks: the built library, and packages.

`python -m tools.gpu.carry [PACKAGE ...]` copies them from this environment to `carry/`, which git ignores;
`make gpu` uses what it finds there. A package comes with what it requires, without what every machine with a
CUDA build of torch has. What is compiled for one version of Python is left out, unless it is named here.
"""

from __future__ import annotations

import re
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
CARRIED = ROOT / "carry"
LIBRARY = ROOT / "diffratio_kernels" / "_C.abi3.so"
PACKAGES = ("diffusers", "rich", "tqdm", "typer", "pytest", "pytest-xdist")
"""Of pyproject.toml's extras, those that the steps of `make gpu` use."""
NOT_NEEDED = ("torch", "triton", "numpy", "hf-xet")
"""They come with torch; hf-xet only downloads."""
ONE_PYTHON = re.compile(r"\.cpython-\d+\S*\.so$")
"""An extension module for one version of Python; those for all are named abi3."""


def required(names: tuple[str, ...]) -> dict[str, Distribution]:
    """Installed packages of these names and all that they require, by their normalised names."""
    found: dict[str, Distribution] = {}
    left = list(names)
    while left:
        line = left.pop()
        name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()
        if name not in found and name not in NOT_NEEDED:
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                if line in names:
                    raise SystemExit(f"{line} is not installed here") from None
                continue  # for another system or version of Python
            left += [line for line in found[name].requires or () if "extra ==" not in line]
    return found


def missing_here(folder: Path = CARRIED) -> list[Path]:
    """Folders of carried packages that this Python has none of itself."""

    def is_missing(name: str) -> bool:
        try:
            distribution(name)
        except PackageNotFoundError:
            return True
        return False

    return [path for path in sorted(folder.glob("*")) if path.is_dir() and is_missing(path.name)]


def copy(package: Distribution, folder: Path) -> int:
    """All files of a package but compiled Python; returns their bytes."""
    size = 0
    for file in package.files or ():
        source = Path(package.locate_file(file))
        if ".." in file.parts or source.suffix == ".pyc" or not source.is_file():
            continue  # scripts in bin/, caches
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        size += source.stat().st_size
    return size


def main(names: tuple[str, ...]) -> int:
    shutil.rmtree(CARRIED, ignore_errors=True)
    CARRIED.mkdir()
    if not LIBRARY.exists():
        print(f"{LIBRARY.name} is not built: make demo, or pip install -e .")
        return 1
    shutil.copy2(LIBRARY, CARRIED)
    total = LIBRARY.stat().st_size
    print(f"{total / 2**20:6.1f} MiB  {LIBRARY.name}")
    packages = required(names)
    bound = {n for n, p in packages.items() if any(ONE_PYTHON.search(str(file)) for file in p.files or ())}
    bound -= set(names)
    for name in sorted(packages.keys() - bound):
        size = copy(packages[name], CARRIED / name)
        print(f"{size / 2**20:6.1f} MiB  {name} {packages[name].version}")
        total += size
    print(f"{total / 2**20:6.1f} MiB  in {CARRIED.name}/")
    if bound:
        version = ".".join(map(str, sys.version_info[:2]))
        print(f"left out, compiled for Python {version} only: {', '.join(sorted(bound))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:]) or PACKAGES))
