"""Builds csrc into diffratio_kernels/_C.abi3.so with CMake. Without a C++ compiler the package installs
without it: everything then runs on the reference, and `diffratio doctor` says so.

Environment: DIFFRATIO_BUILD_NATIVE=auto|0|1 (1 makes a failed build an error), MAX_JOBS.
"""

import os
import subprocess
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
WANTED = os.environ.get("DIFFRATIO_BUILD_NATIVE", "auto")
if WANTED not in ("auto", "0", "1"):
    raise SystemExit(f"DIFFRATIO_BUILD_NATIVE={WANTED!r} must be one of auto, 0, 1")


class CMakeBuild(build_ext):
    def get_ext_filename(self, name):
        return f"{name.replace('.', '/')}.abi3.so"

    def build_extension(self, ext):
        try:
            self._cmake(Path(self.get_ext_fullpath(ext.name)).resolve())
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            if WANTED == "1":
                raise
            self.warn(f"the native library was not built ({error}); the reference will be used instead")

    def _cmake(self, target):
        import torch

        build = ROOT / "build" / "native"
        subprocess.run(
            [
                "cmake",
                "--fresh",
                "-G",
                "Ninja",
                "-S",
                str(ROOT),
                "-B",
                str(build),
                f"-DTORCH_DIR={torch.__path__[0]}",
            ],
            check=True,
        )
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(build / target.name), str(target))


EXTENSION = Extension("diffratio_kernels._C", [], py_limited_api=True, optional=WANTED == "auto")
packages = find_packages(include=["diffratio_kernels", "diffratio_kernels.*"])
front = find_packages("python", include=["diffratio", "diffratio.*"])
setup(
    packages=packages + front,
    package_dir={"diffratio": "python/diffratio", "diffratio_kernels": "diffratio_kernels"},
    package_data={"diffratio.demo": ["assets/*/*", "assets/*"]},
    ext_modules=[] if WANTED == "0" else [EXTENSION],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
