"""Planted in the Triton kernels that work on whole rows: adaLN, gate, scatter."""

from .mutant import Mutant
from .selections import FUZZ, OFFSETS, triton

STATISTICS = "tests/kernels/triton/test_row_statistics.py"
ADALN, GATE, SCATTER = (
    f"diffratio_kernels/ops/{operator}/triton.py"
    for operator in ("adaln", "gate_residual", "scatter_rescale")
)
SLICES = "diffratio_kernels/_triton/slices.py"

TRITON_ROWS = [
    Mutant(
        "gather-reads-the-next-row",
        "dropped mask",
        ADALN,
        {"x_ptr + source * D + d, mask=d < D, other=0.0)": "x_ptr + source * D + d)"},
        FUZZ,
    ),
    Mutant(
        "gather-row-without-other",
        "dropped other",
        ADALN,
        {"x_ptr + source * D + d, mask=d < D, other=0.0)": "x_ptr + source * D + d, mask=d < D)"},
        FUZZ,
    ),
    Mutant(
        "gather-without-a-copy-reads-packed-rows",
        "wrong row",
        ADALN,
        {"index if GATHER else t": "t if rows_ptr is None else index"},
        FUZZ,
    ),
    Mutant(
        "gather-32-bit-index",
        "int32 offset",
        ADALN,
        {"index = tl.load(index_ptr + t)": "index = tl.load(index_ptr + t).to(tl.int32)"},
        triton("large_offsets", "gathered"),
    ),
    Mutant(
        "gather-32-bit-row",
        "64-bit cast dropped",
        ADALN,
        {"    t = tl.program_id(0).to(tl.int64)": "    t = tl.program_id(0)"},
        OFFSETS,
    ),
    Mutant(
        "gather-shift-with-the-stride-of-scale",
        "swapped stride",
        ADALN,
        {"shift_ptr + owner * stride_shift": "shift_ptr + owner * stride_scale"},
        triton("layouts", "gather_adaln"),
    ),
    Mutant(
        "gather-modulation-by-packed-row",
        "wrong sample's modulation",
        ADALN,
        {"owner_of(groups_ptr, index, tokens)": "owner_of(groups_ptr, t, tokens)"},
        FUZZ,
    ),
    Mutant(
        "adaln-mean-over-the-block",
        "mean over BLOCK",
        ADALN,
        {"tl.sum(row, axis=0) / D": "tl.sum(row, axis=0) / d.shape[0]"},
        FUZZ,
    ),
    Mutant(
        "adaln-variance-of-the-padding",
        "variance without the mask",
        ADALN,
        {"tl.where(d < D, row - mean, 0.0)": "row - mean"},
        FUZZ,
    ),
    Mutant(
        "adaln-variance-cancels",
        "variance by E[x^2] - mean^2",
        ADALN,
        {"tl.sum(centred * centred, axis=0) / D": "tl.sum(row * row, axis=0) / D - mean * mean"},
        STATISTICS,
    ),
    Mutant(
        "adaln-statistics-in-fp16",
        "statistics not in fp32",
        ADALN,
        {"row = raw.to(tl.float32)": "row = raw"},
        STATISTICS,
    ),
    Mutant(
        "adaln-without-eps",
        "eps forgotten",
        ADALN,
        {"tl.sum(centred * centred, axis=0) / D + eps": "tl.sum(centred * centred, axis=0) / D"},
        FUZZ,
    ),
    Mutant(
        "adaln-gradient-keeps-the-mean",
        "wrong gradient",
        ADALN,
        {"g - tl.sum(g, axis=0) / D - normed": "g - normed"},
        FUZZ,
    ),
    Mutant(
        "adaln-last-slice-dropped",
        "last slice dropped",
        SLICES,
        {"cdiv(rows.tokens, ROWS_PER_SLICE)": "max(rows.tokens // ROWS_PER_SLICE, 1)"},
        FUZZ,
    ),
    Mutant(
        "gather-gradient-not-zeroed",
        "rows not selected not zeroed",
        ADALN,
        {"if SCATTER:": "if SCATTER and t >= 0:"},
        FUZZ,
    ),
    Mutant(
        "gate-before-residual",
        "gate before residual",
        GATE,
        {"(hidden + gate * branch).to": "(gate * (hidden + branch)).to"},
        FUZZ,
    ),
    Mutant(
        "gate-gradient-double-count",
        "partial sums counted twice",
        GATE,
        {"tl.minimum(begin + ROWS, end)": "tl.minimum(begin + ROWS + 1, end)"},
        FUZZ,
    ),
    Mutant(
        "gate-gradient-of-the-row-before",
        "prefetch of the wrong row",
        GATE,
        {"at_place(packed, place - begin + 1)": "at_place(packed, place - begin)"},
        FUZZ,
    ),
    Mutant(
        "sample-of-a-row-in-16-bits",
        "narrow division",
        SLICES,
        {"index.to(tl.int32) // tokens": "index.to(tl.int16) // tokens"},
        triton("large_offsets", "gathered"),
    ),
    Mutant(
        "slice-32-bit-row",
        "64-bit cast dropped",
        SLICES,
        {"return t * tl.full((), D, tl.int64)": "return t * D"},
        triton("large_offsets", "gradients"),
    ),
    Mutant(
        "scatter-unkept-rows-unwritten",
        "unwritten output rows",
        SCATTER,
        {"tl.store(out_ptr + d, tl.load(x_ptr + d, mask=d < D), mask=d < D)": "pass"},
        FUZZ,
    ),
    Mutant(
        "scatter-in-place-at-the-packed-row",
        "in place: written elsewhere",
        SCATTER,
        {"row = tl.load(index_ptr + t)": "row = t"},
        FUZZ,
    ),
    Mutant(
        "scatter-32-bit-row",
        "64-bit cast dropped",
        SCATTER,
        {"row = tl.program_id(0).to(tl.int64)": "row = tl.program_id(0)"},
        triton("large_offsets", "finished"),
    ),
    Mutant(
        "scatter-without-score",
        "forgotten rescale",
        SCATTER,
        {"(base + factor * delta)": "(base + delta)"},
        FUZZ,
    ),
    Mutant(
        "scatter-without-score-scale",
        "forgotten score_scale",
        SCATTER,
        {"factor = score_scale * tl.sigmoid": "factor = tl.sigmoid"},
        FUZZ,
    ),
    Mutant(
        "scatter-reads-what-it-wrote",
        "in place: read after write",
        SCATTER,
        {
            '        if RESCALE == "residual":\n            x = tl.load': (
                "        tl.store(out_ptr + d, hidden.to(out_ptr.dtype.element_ty), mask=d < D)\n"
                '        if RESCALE == "residual":\n            x = tl.load'
            )
        },
        FUZZ,
    ),
    Mutant(
        "scatter-logit-gradient-without-score-scale",
        "forgotten score_scale",
        SCATTER,
        {"grad_factor * factor * (1 - sigmoid)": "grad_factor * sigmoid * (1 - sigmoid)"},
        FUZZ,
    ),
    Mutant(
        "scatter-gate-gradient-of-slices",
        "last slice dropped",
        SLICES,
        {"return partial.sum(1)": "return partial[:, 0]"},
        FUZZ,
    ),
]
