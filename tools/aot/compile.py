"""From a recorded Triton kernel to its machine code and what it costs."""

from __future__ import annotations

import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .disassembly import dump, figures, matrix_flops, resources
from .loop import figures_of_loop
from .record import Specialization

# Products of BLOCK_M x BLOCK_N x head_dim that the code of a kernel holds. The backward of two bins has a
# loop for both of them and one for the larger.
_PRODUCTS = {
    "attention_fwd": 2,
    "attention_bwd_query": 3,
    "attention_bwd_key": 4,
    "two_bin_attention": 2,
    "two_bin_attention_bwd_query": 4 + 3,
    "two_bin_attention_bwd_key": 6 + 4,
}


def source_of(spec: Specialization) -> ASTSource:
    """What the compiler starts from."""
    return ASTSource(
        spec.kernel, spec.signature, constexprs=spec.constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in spec.aligned},
    )  # fmt: skip


def compile_kernel(spec: Specialization, architecture: int) -> dict:
    """Compile for one architecture; returns the figures of the report."""
    kernel = triton.compile(source_of(spec), target=GPUTarget("cuda", architecture, 32), options=spec.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage, code = (dump(cubin.name, flag) for flag in ("--dump-resource-usage", "--dump-sass"))
    threads = 32 * kernel.metadata.num_warps
    used = resources(usage) | {"shared": kernel.metadata.shared}  # Triton's is dynamic: the cubin has none
    row = figures(architecture, threads, used, code)
    if spec.name in _PRODUCTS:
        row |= {"mma_useful": _mma_useful(spec, row["matrix"], threads), **figures_of_loop(code)}
    return row


def _mma_useful(spec: Specialization, matrix: dict[str, int], threads: int) -> float:
    """Matrix work issued over matrix work needed."""
    size = spec.constants["BLOCK_M"] * spec.constants["BLOCK_N"] * spec.constants["D"]
    return round(matrix_flops(matrix, threads) / (2 * size * _PRODUCTS[spec.name]), 4)
