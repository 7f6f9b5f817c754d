"""What a measurement was made on: GPU, driver, versions, commit, date."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "triton", "diffusers", "flash-attn", "numpy")
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "power.limit")
RESULTS = (
    "benchmarks/results", "diffratio_kernels/_triton/tiles.json", "docs/performance", "docs/performance.md",
)  # fmt: skip
"""What a run on a GPU writes: it is no change of the sources."""
CHECKOUT = Path(__file__).parents[2]


def commit(root: Path = CHECKOUT) -> str:
    """The commit of a checkout, "+changes" where files differ; for a copy without git DIFFRATIO_COMMIT."""
    head = _output("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    if not head:
        return os.environ.get("DIFFRATIO_COMMIT", "unknown")
    changed = _output(
        "git",
        "-C",
        str(root),
        "status",
        "--porcelain",
        "--untracked-files=no",
        *(f":!{name}" for name in RESULTS),
    )
    return head + "+changes" * bool(changed)


def clocks() -> dict[str, str]:
    """Clocks, temperature and power of the first GPU as nvidia-smi prints them."""
    values = _smi(*CLOCKS).split(", ")
    return dict(zip(CLOCKS, values, strict=True)) if len(values) == len(CLOCKS) else {}


def machine(root: Path = CHECKOUT) -> dict:
    """Plain JSON types; `device` is the GPU or, without one, the processor; then its fields are None."""
    import torch

    gpu = torch.cuda.is_available()
    capability = ".".join(map(str, torch.cuda.get_device_capability())) if gpu else None
    return {
        "date": str(date.today()),
        "commit": commit(root),
        "device": torch.cuda.get_device_name() if gpu else processor(),
        "capability": capability,
        "threads": torch.get_num_threads(),
        "driver": _output("nvidia-smi", "-i", "0", "--query-gpu=driver_version", "--format=csv,noheader")
        or None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "clocks": clocks(),
    }


def processor() -> str:
    """What the processor calls itself."""
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _smi(*fields: str) -> str:
    return _output("nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
