"""The CUDA C++ kernels of the native library, read out of the library itself."""

from __future__ import annotations

import re
import shutil
import subprocess

from diffratio_kernels._native import LIBRARY, cuda_unavailable

from .disassembly import dump, figures, resources
from .occupancy import RESERVED_SHARED

_DTYPES = {"__nv_bfloat16": "bf16", "__half": "fp16", "float": "fp32"}
_MOST_THREADS = 1024  # of a block without __launch_bounds__


def library_rows(architectures: tuple[int, ...], kernel: str | None = None) -> list[dict]:
    """Rows of the library's kernels for these architectures, or of those whose name holds `kernel`."""
    if cuda_unavailable:
        return []
    inside = {int(found) for found in re.findall(r"\.sm_(\d+)\.cubin", dump(LIBRARY, "--list-elf"))}
    return [row for architecture in sorted(inside & {*architectures}) for row in _rows(architecture, kernel)]


def nvcc_version() -> str | None:
    """Version of the CUDA toolkit that built the library, which is in there as text."""
    found = (
        None
        if cuda_unavailable
        else re.search(rb"Cuda compilation tools.*?, V([\d.]+)", LIBRARY.read_bytes())
    )
    return found and found.group(1).decode()


def _rows(architecture: int, kernel: str | None) -> list[dict]:
    def dumped(flag: str) -> str:
        return dump(LIBRARY, "--gpu-architecture", f"sm_{architecture}", flag)

    usage = dict(re.findall(r"Function (\S+):\n\s*(REG:.*)", dumped("--dump-resource-usage")))
    names = {symbol: kernel_name(text) for symbol, text in zip(usage, _demangled([*usage]), strict=True)}
    wanted = {symbol: name for symbol, name in names.items() if kernel is None or kernel in name[0]}
    if not wanted:
        return []
    code = dict(_sections(r"^\s*Function : (\S+)$", dumped("--dump-sass")))
    info = dict(_sections(r"^\.nv\.info\.(\S+)$", dumped("-elf")))
    rows = []
    for symbol, (short, label, dtype) in wanted.items():
        used = resources(usage[symbol])
        if architecture >= 90 and used["shared"]:
            used["shared"] -= RESERVED_SHARED  # counted in from there on
        named = dict(source="cuda", kernel=short, label=label, dtype=dtype, architecture=architecture)
        rows.append(named | figures(architecture, _threads(info[symbol]), used, code[symbol]))
    return rows


def _sections(heading: str, text: str) -> list[tuple[str, str]]:
    """Headings, and the text from each to the next."""
    parts = re.split(heading, text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _threads(info: str) -> int:
    """Threads of the largest block that a kernel may have: its __launch_bounds__."""
    found = re.search(r"EIATTR_MAX_THREADS\s+Format:\s+\w+\s+Value:\s+0x(\w+) 0x(\w+) 0x(\w+)", info)
    if not found:
        return _MOST_THREADS
    x, y, z = (int(size, 16) for size in found.groups())
    return x * y * z


def kernel_name(signature: str) -> tuple[str, str, str]:
    """Short name, the other template arguments, and the dtype, of a demangled kernel."""
    text = re.sub(r"\w+::", "", signature).removeprefix("void ")
    text = re.sub(r"\((\w+)\)(\d+)", r"\1 \2", text)
    name, _, arguments = re.match(r"(\w+?)(_kernel)?(?:<(.*)>)?\(", text).groups("")
    dtype = next((short for long, short in _DTYPES.items() if re.search(rf"\b{long}\b", arguments)), "")
    arguments = re.sub(rf"<(?:{'|'.join(_DTYPES)})>|\b(?:{'|'.join(_DTYPES)})\b(?:, )?", "", arguments)
    return name, arguments, dtype


def _demangled(symbols: list[str]) -> list[str]:
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return [f"{symbol}(" for symbol in symbols]
    done = subprocess.run([tool], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
