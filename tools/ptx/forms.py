"""The forms of instructions that our shipped kernels hold, each of which the executor must know.

Compiles whatever ships for sm_80 and sm_90 as far as PTX; nvcc adds the CUDA C++ kernels where it is there.
Leaves the forms in build/ptx/forms.json for report.py; exit code 1 names what is not known.

python -m tools.ptx.forms
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ..aot.shipped import Job, jobs
from . import cuda_launches
from .executor import BUILD, machine
from .report import OPCODE
from .triton_launches import compiled

ARCHITECTURES = (80, 90)
FORMS = BUILD / "forms.json"


def shipped() -> Iterator[tuple[int, str]]:
    """Architecture and PTX of everything that ships."""

    def text(job: Job) -> tuple[int, str]:
        return job.architecture, compiled(job.spec, job.architecture).asm["ptx"]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(text, jobs(ARCHITECTURES))
    if shutil.which("nvcc"):
        for architecture in ARCHITECTURES:
            yield from ((architecture, path.read_text()) for path in cuda_launches.ptx(architecture))
    else:
        print("no nvcc here: the CUDA C++ kernels are left out", file=sys.stderr)


def found() -> tuple[dict[str, list[int]], int, list[str]]:
    """Form -> its architectures; how many kernels hold them; what the executor says of unknown ones."""
    forms: dict[str, set[int]] = {}
    kernels, unknown = 0, []
    for architecture, text in shipped():
        for name in re.findall(r"\.entry\s+(\w+)", text):
            kernels += 1
            try:
                known = machine().Kernel(text, name)
            except machine().PtxError as error:
                unknown.append(f"sm_{architecture}: {error}")
                continue
            lines = text.splitlines()
            for number in known.lines():
                if match := OPCODE.match(lines[number - 1]):
                    forms.setdefault(match[1], set()).add(architecture)
    return {form: sorted(forms[form]) for form in sorted(forms)}, kernels, unknown


def main() -> int:
    forms, kernels, unknown = found()
    FORMS.parent.mkdir(parents=True, exist_ok=True)
    FORMS.write_text(json.dumps(forms))
    counts = [sum(architecture in where for where in forms.values()) for architecture in ARCHITECTURES]
    print(f"{kernels} kernels, {len(forms)} forms ({counts[0]} on sm_80, {counts[1]} on sm_90), unknown:")
    print("\n".join(sorted(set(unknown))) or "none")
    return int(bool(unknown) or not kernels)


if __name__ == "__main__":
    sys.exit(main())
