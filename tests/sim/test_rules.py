"""What keeps the CUDA C++ runnable on a CPU: nothing in it that only a GPU, or only torch, can read."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools import compile_once
from tools.sim import build

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
HEADERS = sorted((CSRC / "include" / "diffratio").iterdir())
SOURCES = [*HEADERS, *sorted((CSRC / "cuda").iterdir())]
PORTABLE = CSRC / "include" / "diffratio" / "portable.cuh"

RULES = {
    "launches are DIFFRATIO_LAUNCH": (r"<<<", "kernel<<<1, 32>>>(x);"),
    "shared arrays are DIFFRATIO_SHARED": (r"\b__shared__\b", "extern __shared__ float all[];"),
    "no PTX": (r"\b(__)?asm(__)?\b", 'asm volatile("membar.gl;");'),
    "no torch, no Python": (
        r"#include\s*[<\"](torch|ATen|c10|Python\.h|pybind11)",
        "#include <c10/util/Half.h>",
    ),
    "lanes are named": (r"\b__(shfl(_up|_down|_xor)?|ballot|any|all|activemask)\(", "x += __shfl_xor(x, 1);"),
}


def code(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    pattern, breaks_it = RULES[rule]
    assert re.search(pattern, breaks_it)
    for path in SOURCES:
        if path != PORTABLE:
            assert not re.search(pattern, code(path)), path


COMPILERS = {
    "g++": [
        "g++", "-x", "c++", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-fsyntax-only",
        f"-I{ROOT}/tools/sim/src",
    ],
    "nvcc": ["nvcc", "-x", "cu", "-Werror", "all-warnings", "-arch=sm_80", "--ptx", "-o", "/dev/null"],
}  # fmt: skip
FOUND = [name for name in COMPILERS if shutil.which(name)]


def compiles(compiler: str, text: str, folder: Path) -> subprocess.CompletedProcess:
    source = folder / "alone.cu"
    source.write_text(text)
    command = [*COMPILERS[compiler], "-std=c++20", f"-I{CSRC}/include", str(source)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
@pytest.mark.parametrize("compiler", FOUND)
def test_header_compiles_alone(compiler, header, tmp_path):
    done = compiles(compiler, f'#include "diffratio/{header.name}"\n', tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("compiler", FOUND)
def test_a_header_that_needs_another_does_not(compiler, tmp_path):
    assert compiles(compiler, "float f(bfloat16 x) { return to_float(x); }\n", tmp_path).returncode != 0


@pytest.mark.parametrize(
    "type_, allowed", [("int", True), ("unsigned", True), ("float", False), ("double", False)]
)
def test_no_float_atomics(type_, allowed, tmp_path):
    """Their sum depends on the order of the threads, so the simulator has none."""
    text = f'#include "diffratio/portable.cuh"\nvoid f({type_}* at) {{ atomicAdd(at, {type_}(1)); }}\n'
    assert (compiles("g++", text, tmp_path).returncode == 0) == allowed


def test_headers_of_a_source_are_known():
    """Objects are kept by the contents of their headers: the same list as the compiler's."""
    include = [f"-I{path}" for path in build.INCLUDE] + [f"-isystem{path}" for path in build.SYSTEM_INCLUDE]
    for source in (*build.RUNTIME, *(s for sources in build.MODULES.values() for s in sources())):
        command = ["g++", "-std=c++20", "-x", "c++", "-MM", *include, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        listed = {Path(word).resolve() for word in done.stdout.replace("\\\n", " ").split()[1:]}
        assert set(compile_once.with_includes(source, build.INCLUDE)) >= listed, source


@pytest.mark.parametrize("line", ['#include "h.h"', '# include "h.h"  // the "big" one', "#include <h.h>"])
def test_every_way_to_include_is_seen(line, tmp_path):
    (tmp_path / "h.h").write_text("")
    (tmp_path / "a.cpp").write_text(line)
    assert tmp_path / "h.h" in compile_once.with_includes(tmp_path / "a.cpp", [])
