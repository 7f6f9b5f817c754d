"""`diffratio doctor`: what is installed, what can run, and why the rest cannot. It needs torch alone."""

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from diffratio_kernels import __version__, _native, capabilities
from diffratio_kernels._choice import attention_choices

PACKAGES = ("torch", "triton", "diffusers", "peft", "accelerate", "safetensors", "flash-attn", "numpy")
HEADINGS = ("operator", "backend", "device", "available", "auto for", "why not")


def doctor(arguments: list[str]) -> None:
    """List every backend of every operator, what is available and why not."""
    parser = argparse.ArgumentParser(prog="diffratio doctor", description=doctor.__doc__)
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    as_json = parser.parse_args(arguments).json
    found = report()
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def report() -> dict:
    """Return versions, devices, the native library and every backend, as plain JSON types."""
    has_gpu = torch.cuda.is_available()
    return {
        "diffratio": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": {"capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if has_gpu else [],
        "native": {
            "available": _native.unavailable is None,
            "reason": _native.unavailable,
            "instruction_set": None if _native.unavailable else _native.instruction_set(),
            "cuda_kernels": _native.cuda_unavailable is None,
            "cuda_reason": _native.cuda_unavailable,
        },
        "backends": capabilities(),
        "attention": _attention() if has_gpu else [],
    }


def lines(found: dict) -> list[str]:
    """Return a report as lines of text; without a GPU only what is for the CPU."""
    gpus = ", ".join(found["gpus"]) or "no GPU"
    lib = found["native"]
    rows = f"{lib['instruction_set']} row kernels" if lib["available"] else lib["reason"]
    compiled = "CUDA kernels" if lib["cuda_kernels"] else f"no CUDA kernels: {lib['cuda_reason']}"
    table = [HEADINGS]
    for row in found["backends"]:
        if row["device"] == "cuda" and not found["gpus"]:
            continue
        mark = "yes" if row["available"] else "no"
        chosen = " ".join(row["auto"])
        table.append((row["op"], row["backend"], row["device"], mark, chosen, row["reason"] or ""))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        f"diffratio {found['diffratio']}, Python {found['python']}, {gpus}",
        ", ".join(f"{name} {v or 'not installed'}" for name, v in found["packages"].items()),
        f"native library: {rows}" + f"; {compiled}" * lib["available"],
        *("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table),
        *("auto, {shapes} attention: {backend} ({reason})".format(**row) for row in found["attention"]),
        *([] if found["gpus"] else ["no CUDA device: nothing runs there; --json lists what would"]),
    ]


def _attention() -> list[dict]:
    """What "auto" takes on the current GPU in half precision, and why."""
    chosen = attention_choices(torch.device("cuda"))
    return [{"shapes": shapes, **choice._asdict()} for shapes, choice in chosen]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
