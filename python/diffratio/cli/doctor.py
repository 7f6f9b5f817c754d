"""`diffratio doctor`: what is installed, what can run, and why the rest cannot."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from diffratio_kernels import __version__, capabilities
from diffratio_kernels.kernels import cuda, native

PACKAGES = ("torch", "triton", "diffusers", "peft", "accelerate", "safetensors", "flash-attn", "numpy")


def report() -> dict:
    """Versions, devices, the native library and every implementation, as plain JSON types."""
    has_gpu = torch.cuda.is_available()
    return {
        "diffratio": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": {"capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if has_gpu else [],
        "native": {
            "available": native.unavailable is None,
            "reason": native.unavailable,
            "instruction_set": None if native.unavailable else native.instruction_set(),
            "cuda_kernels": cuda.unavailable is None,
            "cuda_reason": cuda.unavailable,
        },
        "implementations": capabilities(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List every implementation of every operator, what is available and why not."""
    found = report()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console()
    gpus = ", ".join(found["gpus"]) or "no GPU"
    console.print(f"diffratio {found['diffratio']}, Python {found['python']}, {gpus}", highlight=False)
    console.print(
        ", ".join(f"{name} {v or 'not installed'}" for name, v in found["packages"].items()), highlight=False
    )
    lib = found["native"]
    rows = f"{lib['instruction_set']} row kernels" if lib["available"] else lib["reason"]
    compiled = "CUDA kernels" if lib["cuda_kernels"] else f"no CUDA kernels: {lib['cuda_reason']}"
    console.print(f"native library: {rows}" + f"; {compiled}" * lib["available"], highlight=False)
    table = Table("operator", "implementation", "device", "available", "auto for", "why not")
    for row in found["implementations"]:
        if row["device"] == "cuda" and not found["gpus"]:
            continue
        mark = "[green]yes[/]" if row["available"] else "[red]no[/]"
        chosen = " ".join(row["auto"])
        table.add_row(row["op"], row["implementation"], row["device"], mark, chosen, row["reason"] or "")
    console.print(table)
    if not found["gpus"]:
        console.print("no CUDA device: nothing runs there; --json lists what would", highlight=False)
