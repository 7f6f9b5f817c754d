"""What becomes of the native library at installation: it is built, or a fallback says so once at import."""

import os

import pytest

from diffratio_kernels import _native

TORCHS_OWN = ("-W", "ignore:Failed to initialize NumPy:UserWarning")
"""torch says that it found no NumPy; `pip install .` brings none."""
IMPORTED = "import diffratio_kernels\nfrom diffratio_kernels import _native\nprint(_native.unavailable)"


@pytest.fixture(scope="module")
def cmake(tmp_path_factory):
    """Script -> a PATH on which that script is the only `cmake`: nothing is compiled for minutes here."""

    def path(script: str) -> str:
        tool = tmp_path_factory.mktemp("bin") / "cmake"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        return f"{tool.parent}{os.pathsep}{os.environ['PATH']}"

    return path


@pytest.mark.skipif(_native.unavailable is not None, reason=f"no native library here: {_native.unavailable}")
def test_the_wheel_holds_the_library(install, cmake):
    """The build ends with the library of this checkout; the installed package loads it and is silent."""
    build = f'[ "$1" = --build ] && cp "{_native.LIBRARY}" "$2/" || mkdir -p build/native'
    installed = install(PATH=cmake(build), DIFFRATIO_BUILD_NATIVE="1", DIFFRATIO_BUILD_CUDA="0")
    done = installed.call("python", *TORCHS_OWN, "-W", "error::RuntimeWarning", "-c", IMPORTED)
    assert (done.stdout, done.stderr) == ("None\n", "")
    assert (installed.site / "diffratio_kernels" / _native.LIBRARY.name).is_file()


def test_a_build_that_failed_is_said_once_at_import(install, cmake):
    installed = install(PATH=cmake("exit 1"), DIFFRATIO_BUILD_CUDA="0")
    done = installed.call("python", *TORCHS_OWN, "-c", IMPORTED + "\nimport diffratio_kernels.ops.route.op")
    assert "was not built" in done.stdout
    [line] = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert line.startswith("<string>:1: RuntimeWarning: diffratio_kernels has no native library")
    assert "was not built" in line and "DIFFRATIO_BUILD_NATIVE=1" in line
    silenced = installed.call("python", *TORCHS_OWN, "-W", "ignore::RuntimeWarning", "-c", IMPORTED)
    assert silenced.stdout == done.stdout and silenced.stderr == ""


def test_a_build_that_must_not_fail_says_why(install, cmake):
    with pytest.raises(AssertionError, match="no such compiler"):
        install(PATH=cmake("echo no such compiler; exit 1"), DIFFRATIO_BUILD_NATIVE="1")
