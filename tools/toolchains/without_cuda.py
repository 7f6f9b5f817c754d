"""Lets a CUDA build of torch be imported without CUDA: of some versions the package index has no CPU build.

Such a build links against 3 GB of NVIDIA's libraries. Instead of them it gets empty ones, in which every
function returns 100, "no CUDA device is detected"; it then runs as it does on any machine without a GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

_NVIDIA = re.compile(r"lib(cu|nv|nccl)\w*\.so\S*")


def add_empty_libraries(folder: Path) -> list[str]:
    """Write the NVIDIA libraries that those in a folder link against and that are not there.

    Args:
        folder: `torch/lib` of an installed torch; they are written there, where torch looks first.

    Returns:
        Their names.
    """
    present = [path for path in folder.glob("*.so*") if path.is_file()]
    missing, versions, symbols, defined = set(), {}, defaultdict(set), set()
    for path in present:
        missing |= set(re.findall(r"NEEDED.*\[(\S+)\]", _readelf("--dynamic", path)))
        versions |= _file_of_version(_readelf("--version-info", path))
        for section, name, version in re.findall(
            r"\s(UND|\d+) ([\w.$]+)(?:@+(\S+))?(?: \(\d+\))?$", _readelf("--dyn-syms", path), re.M
        ):
            (symbols[version] if section == "UND" else defined).add(name)
    missing = {name for name in missing if _NVIDIA.fullmatch(name)} - {path.name for path in present}
    by_library = {name: {} for name in sorted(missing)}
    for version, file in versions.items():
        if file in missing:
            by_library[file][version] = symbols[version]
    # What carries no version may be found anywhere: C++ runtime and libc put a version on theirs.
    if missing:
        by_library[min(missing)][""] = symbols[""] - defined
    for name, wanted in by_library.items():
        _compile(folder / name, wanted)
    return [*by_library]


def _readelf(what: str, path: Path) -> str:
    return subprocess.run(["readelf", "-W", what, path], capture_output=True, text=True, check=True).stdout


def _file_of_version(text: str) -> dict[str, str]:
    """Which library each version of a symbol comes from, from the section of needed versions."""
    found, file = {}, ""
    for kind, name in re.findall(r"\b(File|Name): (\S+)", text.partition("version_r")[2]):
        if kind == "File":
            file = name
        else:
            found[name] = file
    return found


def _compile(path: Path, symbols: dict[str, set[str]]) -> None:
    """A library whose functions, each under its version, all return 100."""
    code, script = ["static int absent(void) { return 100; }"], []
    for version, names in symbols.items():
        code += (f'int {name}(void) __attribute__((alias("absent")));' for name in names)
        if version:
            script.append(
                f"{version} {{ {'global:' if names else ''} {' '.join(f'{name};' for name in names)} }};"
            )
    with tempfile.TemporaryDirectory() as folder:
        source, versions = Path(folder, "absent.c"), Path(folder, "versions")
        source.write_text("\n".join(code))
        versions.write_text("\n".join(script))
        options = [f"-Wl,-soname,{path.name}", *([f"-Wl,--version-script,{versions}"] if script else [])]
        subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", path, source, *options], check=True)
