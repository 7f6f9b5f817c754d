"""Planted in the Triton kernels of two bins."""

from .mutant import Mutant
from .selections import TRITON, triton

ROWS = "diffratio_kernels/_triton/two_bin_rows.py"
GELU, BLEND, ATTENTION = (
    f"diffratio_kernels/ops/two_bin_{name}/triton.py" for name in ("gelu", "blend", "attention")
)
LOOPS = "diffratio_kernels/_triton/attention.py"
FUZZ = " ".join(
    f"{TRITON}test_two_bin.py::test_launchers_stay_within_the_error_budget[{first}]" for first in (0, 15, 30)
)
LARGE = f"{TRITON}test_large_offsets.py -k two_bins"

TRITON_TWO_BIN = [
    Mutant(
        "two-bin-sample-search-stops-early",
        "wrong sample's weight",
        GELU,
        {"max(samples - 1, 0).bit_length()": "max(samples - 1, 0).bit_length() - (samples > 2)"},
        FUZZ,
    ),
    Mutant(
        "two-bin-sample-search-skips-empty-samples-wrongly",
        "wrong sample's weight",
        ROWS,
        {"tl.load(cu_seqlens_ptr + middle + 1) <= t": "tl.load(cu_seqlens_ptr + middle + 1) < t"},
        FUZZ,
    ),
    Mutant(
        "two-bin-small-rows-without-their-sample",
        "wrong packed row",
        ROWS,
        {"(first_small + place).to(tl.int64) + rows": "place.to(tl.int64) + rows"},
        FUZZ,
    ),
    Mutant(
        "two-bin-one-small-row-more",
        "k+1",
        ROWS,
        {"in_small = place < tl.load": "in_small = place <= tl.load"},
        FUZZ,
    ),
    Mutant(
        "two-bin-blend-32-bit-row",
        "64-bit cast dropped",
        BLEND,
        {"t = tl.load(row_map_ptr + row).to(tl.int64)\n    d =": "t = tl.load(row_map_ptr + row)\n    d ="},
        LARGE,
    ),
    Mutant(
        "two-bin-attention-key-heads-in-turn",
        "wrong head",
        ATTENTION,
        {"V + head // GROUP * HEAD_V\n    grad": "V + head % (H // GROUP) * HEAD_V\n    grad"},
        triton("two_bin", "launchers"),
    ),
    Mutant(
        "two-bin-attention-32-bit-first-row",
        "64-bit cast dropped",
        ATTENTION,
        {"return large.to(tl.int64), count_large": "return large, count_large"},
        LARGE,
    ),
    Mutant(
        "two-bin-gelu-without-the-small-bin",
        "a bin forgotten",
        GELU,
        {"blend = weight * large + (1 - weight) * small": "blend = weight * large"},
        FUZZ,
    ),
    Mutant(
        "two-bin-gelu-small-bin-everywhere",
        "dropped mask",
        GELU,
        {
            "inside = columns_if(in_small, f < F)\n        small, _": "inside = f < F\n        small, _",
        },
        FUZZ,
    ),
    Mutant(
        "two-bin-gelu-dots-of-the-last-block",
        "partial sums dropped",
        GELU,
        {"dot += grad * (large - small)": "dot = grad * (large - small)"},
        FUZZ,
    ),
    Mutant(
        "two-bin-gelu-gradient-weights-swapped",
        "wrong bin's weight",
        GELU,
        {"((1 - weight) * grad * slope)": "(weight * grad * slope)"},
        FUZZ,
    ),
    Mutant(
        "two-bin-blend-x-rescaled",
        "wrong rescale mode",
        BLEND,
        {"base = tl.where(in_small, 0.0, (1 - weight) * x)": "base = tl.where(in_small, 0.0, weight * x)"},
        FUZZ,
    ),
    Mutant(
        "two-bin-blend-zero-for-the-small-bin",
        "rows of one bin lose x",
        BLEND,
        {"other = tl.where(in_small, small, x)": "other = tl.where(in_small, small, 0.0)"},
        FUZZ,
    ),
    Mutant(
        "two-bin-blend-reads-x-of-all-rows",
        "0 times NaN",
        BLEND,
        {
            "base, delta = weight * large + (1 - weight) * other, update": (
                "base, delta = weight * large + (1 - weight) * other + 0.0 * x, update"
            )
        },
        triton("two_bin", "do_not_read_x"),
    ),
    Mutant(
        "two-bin-blend-dots-without-score",
        "forgotten rescale",
        BLEND,
        {"stream * large - tl.where": "large - tl.where"},
        FUZZ,
    ),
    Mutant(
        "two-bin-blend-x-gradient-without-weight",
        "wrong gradient",
        BLEND,
        {"tl.where(in_small, 0.0, (1 - weight) * passed)": "tl.where(in_small, 0.0, passed)"},
        FUZZ,
    ),
    Mutant(
        "two-bin-blend-small-gradient-unmasked",
        "dropped mask",
        BLEND,
        {"* stream * grad).to(dtype), mask=both)": "* stream * grad).to(dtype), mask=d < D)"},
        FUZZ,
    ),
    Mutant(
        "two-bin-attention-snapshot-too-late",
        "snapshot past the prefix",
        ATTENTION,
        {
            "BLOCK_M < small, small, 0)\n    for bin": (
                "BLOCK_M < small, tl.minimum((small + BLOCK_N - 1) // BLOCK_N * BLOCK_N, large), 0)\n"
                "    for bin"
            )
        },
        FUZZ,
    ),
    Mutant(
        "two-bin-attention-prefix-counted-twice",
        "keys counted twice",
        ATTENTION,
        {"tl.where(bin == 0, 0, split), tl": "0, tl"},
        FUZZ,
    ),
    Mutant(
        "two-bin-attention-second-block-of-queries",
        "a block of queries forgotten",
        ATTENTION,
        {
            "tl.program_id(0) * BLOCK_M < small, small, 0)\n    for bin": (
                "tl.program_id(0) == 0, small, 0)\n    for bin"
            )
        },
        FUZZ,
    ),
    Mutant(
        "two-bin-attention-small-keys-unmasked",
        "missing mask of keys",
        LOOPS,
        {"weights = tl.where(n[:, None] < small, weights, 0.0)": "pass"},
        FUZZ,
    ),
    Mutant(
        "two-bin-attention-small-delta-of-the-large-bin",
        "wrong bin's delta",
        LOOPS,
        {"value0, value1, D1) - delta_small[:, None])": "value0, value1, D1) - delta[:, None])"},
        FUZZ,
    ),
    Mutant(
        "two-bin-attention-key-gradient-of-one-bin",
        "a bin forgotten",
        LOOPS,
        {"tl.static_range(2 if BOTH else 1)": "tl.static_range(1)"},
        FUZZ,
    ),
]
