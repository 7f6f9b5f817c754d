"""The native library (csrc): the C++ row kernels for the CPU and, where nvcc was found, the CUDA C++ kernels.

On the CPU the processor's best instruction set is taken; the environment variable
DIFFRATIO_CPU_CAPABILITY=avx512|avx2|baseline asks for another one.
"""

import os
from pathlib import Path

import torch

LIBRARY = Path(__file__).parent / "_C.abi3.so"
CAPABILITY = "DIFFRATIO_CPU_CAPABILITY"
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
"""What the row kernels are compiled for; on other processors than x86-64 for "baseline" alone."""


def _load() -> str | None:
    """Load the native library; the reason where there is none."""
    if not LIBRARY.exists():
        return f"{LIBRARY.name} was not built (no GCC 12 or CMake at install time?)"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} did not load: {error}"
    wanted = os.environ.get(CAPABILITY)
    if wanted is not None:
        try:
            use_instruction_set(wanted)
        except ValueError as error:
            raise ValueError(f"{CAPABILITY}: {error}") from None
    return None


def instruction_set() -> str:
    """The instruction set that the row kernels run on: one of INSTRUCTION_SETS."""
    return torch.ops.diffratio_native.instruction_set()


def instruction_sets() -> list[str]:
    """Those that this library holds and this processor can run, the best first."""
    return torch.ops.diffratio_native.instruction_sets()


def use_instruction_set(name: str) -> None:
    """Run the row kernels of one of INSTRUCTION_SETS from now on, in the whole process.

    Raises:
        ValueError: `name` is none of them, or cannot run here.
    """
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"{name!r} must be one of {', '.join(INSTRUCTION_SETS)}")
    if name not in instruction_sets():
        raise ValueError(f"no {name!r} row kernels can run here, only {', '.join(instruction_sets())}")
    torch.ops.diffratio_native.use_instruction_set(name)


unavailable = _load()
"""None where the kernels can run, else why they cannot."""


def _without_cuda() -> str | None:
    if unavailable is None and not hasattr(torch.ops.diffratio_cuda, "router_logits"):
        return f"{LIBRARY.name} was built without CUDA kernels (no nvcc at install time, or it failed)"
    return unavailable


cuda_unavailable = _without_cuda()
"""None where the CUDA C++ kernels were built, else why they were not. Whether there is a GPU is another
question."""
