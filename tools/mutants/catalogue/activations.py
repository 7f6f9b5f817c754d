"""Bugs in what MLPs have between their products, in parallel blocks, and in how MLPs are taken apart."""

from .mutant import Mutant

OP, NATIVE = "tests/ops/test_activation.py", "tests/kernels/test_native_activations.py"
TRITON, CPU = "diffratio_kernels/ops/activation/triton.py", "csrc/cpu/activation.h"
CUDA = "csrc/include/diffratio/activation.cuh"
SIM = "tests/sim/test_cuda_activations.py"
SIM_BUDGET = f"{SIM} -k error_budget"
PRODUCTS, PARALLEL = "diffratio_kernels/blocks/products.py", "diffratio_kernels/blocks/parallel.py"
MODULES = "python/diffratio/families/mlp_modules.py"
BLOCKS, MLPS = "tests/diffratio/families/test_blocks.py", "tests/diffratio/families/test_mlps.py"

ACTIVATIONS = [
    Mutant(
        "silu-without-its-slope", "wrong derivative", TRITON,
        {"gate + x * gate * (1 - gate)": "gate"}, OP,
    ),
    Mutant(
        "exact-gelu-by-another-density", "wrong derivative", TRITON,
        {"0.3989422804014327 * tl.exp(-0.5 * x * x)": "0.3989422804014327 * tl.exp(-x * x)"}, OP,
    ),
    Mutant(
        "parallel-score-of-the-packed-row", "index", TRITON,
        {"tl.load(logits_ptr + tl.load(index_ptr + t))": "tl.load(logits_ptr + t)"}, OP,
    ),
    Mutant(
        "value-without-its-stride", "index", TRITON,
        {"inner *= tl.load(value_ptr + t * stride_value + f": "inner *= tl.load(value_ptr + t * F + f"}, OP,
    ),
    Mutant(
        "gradient-of-value-unscored", "formula", TRITON,
        {"(score * grad * inner).to(dtype)": "(grad * inner).to(dtype)"}, OP,
    ),
    Mutant(
        "gradient-of-logits-unscaled", "formula", TRITON,
        {"tl.sum(dot, axis=0) * score * (1 - sigmoid)": "tl.sum(dot, axis=0) * sigmoid * (1 - sigmoid)"}, OP,
    ),
    Mutant(
        "cpu-score-of-the-packed-row", "index", CPU,
        {"static_cast<A>(a.score_scale) * sigmoid(static_cast<const A*>(a.logits)[a.index[t]])":
         "static_cast<A>(a.score_scale) * sigmoid(static_cast<const A*>(a.logits)[t])"}, OP,
    ),
    Mutant(
        "cpu-output-without-its-stride", "index", CPU,
        {"static_cast<T*>(a.out) + t * a.out_stride": "static_cast<T*>(a.out) + t * a.width"}, OP,
    ),
    Mutant(
        "cpu-error-function-cut-short", "range too small", CPU,
        {"float p = -0.0593381259f;": "float p = 0;"}, NATIVE,
    ),
    Mutant(
        "cpu-silu-gate-as-a-difference", "cancellation", CPU,
        {"large = 1 / (1 + e), small = e * large;\n    gate = v < 0 ? small : large;\n    rest = v < 0":
         "large = 1 / (1 + e), small = 1 - large;\n    gate = v < 0 ? small : large;\n    rest = v < 0"},
        NATIVE,
    ),
    Mutant(
        "cuda-score-of-the-packed-row", "index", CUDA,
        {"a.score_scale * sigmoid(a.logits[a.index[t]])": "a.score_scale * sigmoid(a.logits[t])"}, SIM_BUDGET,
    ),
    Mutant(
        "cuda-gradient-of-value-unscored", "formula", CUDA,
        {"from_float<T>(factor * (g * act.value))": "from_float<T>(g * act.value)"}, SIM_BUDGET,
    ),
    Mutant(
        "cuda-exact-gelu-as-a-difference", "cancellation", CUDA,
        {"small = 0.5f * e * t * p": "small = 1 - (1 - 0.5f * e * t * p)"}, f"{SIM} -k far_from_zero",
    ),
    Mutant(
        "cuda-strides-of-halves-unchecked", "alignment check removed", "csrc/cuda/activation.h",
        {" && a.gate_stride % n == 0 && a.value_stride % n == 0": ""}, f"{SIM} -k 'alignment'", sanitize=True,
    ),
    Mutant(
        "halves-of-the-mlp-on-each-other", "aliasing", PRODUCTS,
        {"rest = None if run.buffer is None else run.buffer[taken:]": "rest = run.buffer"},
        f"{BLOCKS} -k flux3",
    ),
    Mutant(
        "score-twice-in-parallel-blocks", "formula", PARALLEL,
        {"return both, Rescale(\"none\") if alone else rescale": "return both, rescale"},
        f"{BLOCKS} -k flux_single",
    ),
    Mutant(
        "parallel-mlp-never-scored", "formula", PARALLEL,
        {"(rows.index, logits, rescale.score_scale) if alone else ()": "()"}, f"{BLOCKS} -k flux2_single",
    ),
    Mutant(
        "gate-and-value-swapped", "index", "diffratio_kernels/types.py",
        {"(first, last) if self.gate == \"first\" else (last, first)": "(first, last)"},
        f"{BLOCKS} -k ovis",
    ),
    Mutant(
        "other-activations-passed-over", "silence", MODULES,
        {"all(one and one.kind == layers.activation.kind for one in between)": "True"}, MLPS,
    ),
]  # fmt: skip
