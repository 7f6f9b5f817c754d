"""Selections of tests that take seconds each."""

TRITON = "tests/kernels/triton/"
_FUZZED = f"{TRITON}test_random_shapes.py::test_launchers_stay_within_the_error_budget"
FUZZ = " ".join(f"{_FUZZED}[{first}]" for first in range(0, 160, 20))
"""160 seeds: 20 of each operator, forward and backward."""
_PRODUCTS = f"{TRITON}test_products.py::test_products_stay_within_the_error_budget"
PRODUCTS = " ".join(f"{_PRODUCTS}[{first}]" for first in range(0, 80, 20))
TRITON_SELECT = f"{TRITON}test_score_matrices.py -k 'kept_tokens and (31] or 257]) or small_bin'"
OFFSETS = f"{TRITON}test_large_offsets.py"


def triton(file: str, kind: str) -> str:
    """The tests of one file that call kernels of one kind."""
    return f"{TRITON}test_{file}.py -k {kind}"


_BLOCKS = "tests/ops/properties/test_budget.py::test_block_of_triton_kernels_is_within_the_error_budget"
BLOCKS = " ".join(f"{_BLOCKS}[{seed}]" for seed in range(6))

NATIVE_ROWS = "tests/kernels/test_native_rows.py -k 'fp64 or two_bins'"
GELU = "tests/kernels/test_native_gelu.py"
_TWO_BINS = "tests/ops/properties/test_budget.py::test_two_bins_are_within_the_error_budget_of_two_passes"
TWO_BIN_BLOCKS = " ".join(f"{_TWO_BINS}[{seed}]" for seed in range(12))

SIM_ROWS = "tests/sim/test_cuda_rows.py"
BUDGET = f"{SIM_ROWS} -k error_budget"
SCHEDULES = f"{SIM_ROWS} -k every_schedule"
LAYOUTS = f"{SIM_ROWS} -k every_layout"
SIM_SELECT = "tests/sim/test_cuda_select.py -k 'kept_tokens and (7 or 64)'"
