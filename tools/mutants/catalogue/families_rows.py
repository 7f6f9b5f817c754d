"""Bugs in what families need of the row operators: rms norms, groups of tokens, norms of branches."""

from .mutant import Mutant

GROUPS, NORMS = "tests/ops/test_groups.py", "tests/ops/test_branch_norm.py"
FAMILIES = "tests/diffratio/families/test_row_operators.py"
SIM = "tests/sim/test_cuda_families.py"
SLICES = "diffratio_kernels/_triton/slices.py"
ADALN, GATE = (f"diffratio_kernels/ops/{op}/triton.py" for op in ("adaln", "gate_residual"))
OPS = "diffratio_kernels/ops/branch_norm.py"
CPU = "csrc/cpu/norm.h"
CUDA = "csrc/include/diffratio/"

FAMILIES_ROWS = [
    Mutant(
        "groups-of-a-slice-in-one-place", "partial sums overwritten", SLICES,
        {"if order_ptr is None else part + group": "if order_ptr is None else part"}, GROUPS,
    ),
    Mutant(
        "last-slice-of-a-group-dropped", "last slice dropped", SLICES,
        {"(end - 1) // ROWS + 1": "(end - 1) // ROWS"}, GROUPS,
    ),
    Mutant(
        "modulation-of-the-first-group", "wrong group's modulation", SLICES,
        {"vectors_ptr + group.to(tl.int64) * stride": "vectors_ptr + 0 * stride"}, GROUPS,
    ),
    Mutant(
        "token-of-another-place", "wrong row", SLICES,
        {"at_place(tokens, place - begin)": "at_place(tokens, place - begin + 1)"}, GROUPS,
    ),
    Mutant(
        "rms-of-a-centred-row", "formula", ADALN,
        {"mean = 0.0 if RMS else tl.sum(row, axis=0) / D": "mean = tl.sum(row, axis=0) / D"}, GROUPS,
    ),
    Mutant(
        "gradient-of-a-layer-norm-keeps-the-mean", "wrong gradient", GATE,
        {"mean = tl.sum(grad, axis=0) / D if NORM == \"layer\" else 0.0": "mean = 0.0"}, NORMS,
    ),
    Mutant(
        "branch-norm-of-the-padding", "statistics without the mask", GATE,
        {"row_stats(tl.where(d < D, branch, 0.0), d": "row_stats(branch, d"},
        "tests/kernels/triton/test_random_shapes.py",
    ),
    Mutant(
        "gradient-of-a-norm's-weight-without-the-gate", "wrong gradient", OPS,
        {"(gate * normed).sum(0)": "normed.sum(0)"}, NORMS,
    ),
    Mutant(
        "gradient-of-the-gate-without-the-bias", "wrong gradient", OPS,
        {"grad_gate + plain * norm.bias.to(plain.dtype)": "grad_gate"}, NORMS,
    ),
    Mutant(
        "cpu-groups-not-read", "wrong group's modulation", CPU,
        {"groups ? groups[row] : row / tokens": "row / tokens"}, GROUPS,
    ),
    Mutant(
        "cpu-rms-gradient-takes-the-mean-off", "wrong gradient", CPU,
        {"sum = norm == Norm::kLayer ? sum / width : A{0};": "sum /= width;"}, NORMS,
    ),
    Mutant(
        "cpu-branch-norm-without-eps", "eps forgotten", CPU,
        {"return {0, 1 / std::sqrt(squares / width + eps)};": "return {0, 1 / std::sqrt(squares / width)};"},
        NORMS,
    ),
    Mutant(
        "cuda-sums-run-into-the-next-group", "wrong group's sum", f"{CUDA}group_sums.cuh",
        {"if (i < end && next == group) continue;": "if (i < end) continue;"}, SIM,
    ),
    Mutant(
        "cuda-last-slice-of-a-group-dropped", "last slice dropped", f"{CUDA}group_sums.cuh",
        {"slice <= (end - 1) / kWarp": "slice < (end - 1) / kWarp"}, SIM,
    ),
    Mutant(
        "cuda-rms-takes-the-mean-off", "formula", f"{CUDA}row.cuh",
        {"if (kPlain || norm == Norm::kLayer) {": "{"}, SIM,
    ),
    Mutant(
        "cuda-branch-gradient-keeps-the-mean", "wrong gradient", f"{CUDA}norm_row.cuh",
        {"mean_g = norm_.kind == Norm::kLayer ? sums[0] / width_ : 0.0f": "mean_g = 0.0f"}, SIM,
    ),
    Mutant(
        "norm-of-a-branch-forgotten", "formula", "diffratio_kernels/blocks/joint.py",
        {"        return branch, norm\n    return norm(branch), None": (
            "        return branch, None\n    return norm(branch), None"
        )}, FAMILIES,
    ),
    Mutant(
        "eps-of-a-branch-norm-forgotten", "eps forgotten", "python/diffratio/families/norms.py",
        {"_bias(norm), norm.eps)": "_bias(norm))"}, FAMILIES,
    ),
]  # fmt: skip
