"""Planted in the CUDA C++ of two bins, which runs in the simulator."""

from .mutant import Mutant

INCLUDE = "csrc/include/diffratio/"
ROW, GELU, INDEX = INCLUDE + "two_bin_row.cuh", INCLUDE + "two_bin_gelu.cuh", INCLUDE + "index.cuh"
BLEND, BACKWARD = INCLUDE + "two_bin_blend.cuh", INCLUDE + "two_bin_blend_backward.cuh"

ACTIVATION = INCLUDE + "activation.cuh"

TESTS = "tests/sim/test_cuda_two_bin.py"
BUDGET = f"{TESTS} -k error_budget"
SCHEDULES = f"{TESTS} -k every_schedule"
LAYOUTS = f"{TESTS} -k every_layout"
FAR = f"{TESTS} -k far_from_zero"

CUDA_TWO_BIN = [
    Mutant(
        "two-bin-empty-sample-owns-a-row",
        "wrong sample",
        INDEX,
        {"offsets[middle + 1] <= t": "offsets[middle + 1] < t"},
        f"{TESTS} -k finds_its_sample",
    ),
    Mutant(
        "two-bin-small-row-of-the-first-sample",
        "wrong sample",
        ROW,
        {"bins.rows + first + rank": "bins.rows + rank"},
        BUDGET,
    ),
    Mutant(
        "two-bin-prefix-one-longer",
        "two-bin prefix order",
        ROW,
        {"rank >= bins.cu_seqlens_small[b + 1] - first": "rank > bins.cu_seqlens_small[b + 1] - first"},
        BUDGET,
    ),
    Mutant("two-bin-weights-not-of-1", "wrong weight", ROW, {"1 - large, bins": "large, bins"}, BUDGET),
    Mutant(
        "two-bin-columns-of-other-warps-too",
        "partial sums counted twice",
        INCLUDE + "row.cuh",
        {"const int step = blockDim.x": "const int step = kWarp"},
        BUDGET,
    ),
    Mutant(
        "two-bin-gelu-slope-cancels",
        "cancellation",
        ACTIVATION,
        {"both = decay * near * near": "both = gate * (1 - gate)"},
        FAR,
    ),
    Mutant("two-bin-gelu-square-unbounded", "overflow", ACTIVATION, {"min(square, 1e4f)": "square"}, FAR),
    Mutant(
        "two-bin-gelu-gradient-of-small-unwritten",
        "unwritten output rows",
        GELU,
        {"    if (row.in_both()) store<n, kAligned>(grad_small, column, width, to_small);\n": ""},
        SCHEDULES,
    ),
    Mutant(
        "two-bin-gelu-weight-without-small",
        "wrong gradient",
        GELU,
        {"        difference -= of_small.value;\n": ""},
        BUDGET,
    ),
    Mutant(
        "two-bin-gelu-alignment-unchecked",
        "alignment check removed",
        "csrc/cuda/two_bin_gelu.cu",
        {" && all_aligned({a.pre, a.inner})": ""},
        LAYOUTS,
        sanitize=True,
    ),
    Mutant(
        "two-bin-width-unchecked",
        "dropped mask",
        "csrc/cuda/two_bin_blend.cu",
        {"a.width % kPerVector<T> == 0 && ": ""},
        f"{TESTS} -k 'error_budget and not 600 and not 10248'",
        sanitize=True,
    ),
    Mutant(
        "two-bin-omega-is-1",
        "wrong weight",
        ROW,
        {"in_both() ? 1.0f : large": "1.0f"},
        BUDGET,
    ),
    Mutant(
        "two-bin-x-scaled-in-every-mode",
        "wrong weight",
        BLEND,
        {"residual ? score : constant, score": "score, score"},
        BUDGET,
    ),
    Mutant(
        "two-bin-x-unread-in-residual",
        "dropped term",
        BLEND,
        {"return rescale == Rescale::kResidual || !row": "return !row"},
        BUDGET,
    ),
    Mutant(
        "two-bin-first-part-of-a-vector",
        "columns left out",
        "csrc/include/diffratio/row.cuh",
        {"i < kPerVector<T>; i += kStep<T, kAligned>": "i < kStep<T, kAligned>; i += kStep<T, kAligned>"},
        LAYOUTS,
    ),
    Mutant(
        "two-bin-weight-without-x",
        "wrong gradient",
        BACKWARD,
        {"row.in_both() ? 0.0f : blend.x": "0.0f"},
        BUDGET,
    ),
    Mutant(
        "two-bin-score-without-x",
        "wrong gradient",
        BACKWARD,
        {"by_score.x * row.omega()": "0"},
        BUDGET,
    ),
    Mutant(
        "two-bin-logit-gradient-unwritten",
        "rows not selected not zeroed",
        BACKWARD,
        {"    if (threadIdx.x == 0) b.grad_logits[r] = 0;\n": ""},
        SCHEDULES,
    ),
    Mutant("two-bin-dots-of-one-lane", "wrong gradient", BACKWARD, {"  row_sums(dots);\n": ""}, BUDGET),
    Mutant(
        "two-bin-score-of-none",
        "wrong gradient",
        BACKWARD,
        {"a.rescale == Rescale::kNone ? 0 : dots[1]": "dots[1]"},
        BUDGET,
    ),
]
