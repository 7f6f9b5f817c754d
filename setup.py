"""Builds csrc into diffratio_kernels/_C.abi3.so with CMake: the CPU kernels and, where nvcc is found, the
CUDA kernels. Without a C++ compiler the package installs without it: everything then runs on the reference,
and `diffratio doctor` says so.

Environment: DIFFRATIO_BUILD_NATIVE and DIFFRATIO_BUILD_CUDA, each auto|0|1 (1 makes a failed build an error);
MAX_JOBS; CUDACXX or CUDA_HOME where nvcc is not on the PATH.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent


def wanted(name):
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name}={value!r} must be one of auto, 0, 1")
    return value


NATIVE, CUDA = wanted("DIFFRATIO_BUILD_NATIVE"), wanted("DIFFRATIO_BUILD_CUDA")
MUST_BUILD = "1" in (NATIVE, CUDA)
if NATIVE == "0" and CUDA == "1":
    raise SystemExit("DIFFRATIO_BUILD_CUDA=1 needs the library that DIFFRATIO_BUILD_NATIVE=0 leaves out")


def find_nvcc():
    home = os.environ.get("CUDA_HOME")
    there = shutil.which("nvcc", path=f"{home}/bin") if home else None
    return os.environ.get("CUDACXX") or there or shutil.which("nvcc")


class CMakeBuild(build_ext):
    def get_ext_filename(self, name):
        return f"{name.replace('.', '/')}.abi3.so"

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            if CUDA == "0" or not self._with_cuda(target):
                self._cmake(target)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            if MUST_BUILD:
                raise
            self.warn(f"the native library was not built ({error}); the reference will be used instead")

    def _with_cuda(self, target):
        """Build with the CUDA kernels; False where that cannot be done and need not be."""
        nvcc = find_nvcc()
        if nvcc is None and CUDA == "auto":
            return False
        try:
            self._cmake(target, "-DDIFFRATIO_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc or 'nvcc'}")
        except subprocess.CalledProcessError as error:
            if CUDA == "1":
                raise
            self.warn(f"the CUDA kernels were not built ({error}); the library is built without them")
            return False
        return True

    def _cmake(self, target, *options):
        import torch

        build = ROOT / "build" / "native"
        settings = [f"-DTORCH_DIR={torch.__path__[0]}", *options]
        subprocess.run(
            ["cmake", "--fresh", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *settings], check=True
        )
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(build / target.name), str(target))


EXTENSION = Extension("diffratio_kernels._C", [], py_limited_api=True, optional=not MUST_BUILD)
packages = find_packages(include=["diffratio_kernels", "diffratio_kernels.*"])
front = find_packages("python", include=["diffratio", "diffratio.*"])
setup(
    packages=packages + front,
    package_dir={"diffratio": "python/diffratio", "diffratio_kernels": "diffratio_kernels"},
    package_data={
        "diffratio.evaluation": ["assets/*"],
        "diffratio.evaluation.published": ["published.json"],
        "diffratio.toy": ["assets/*/*"],
        "diffratio_kernels._triton": ["tiles.json"],
    },
    ext_modules=[] if NATIVE == "0" else [EXTENSION],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
