"""Planted in the Triton kernels that score tokens and keep the best."""

from .mutant import Mutant
from .selections import FUZZ, TRITON_SELECT, triton

ROUTE = "diffratio_kernels/ops/route/triton.py"

TRITON_SELECTION = [
    Mutant(
        "logits-of-the-next-row",
        "dropped mask",
        ROUTE,
        {"row[:, None] * D + d, mask=inside & (d < D)": "row[:, None] * D + d, mask=inside"},
        FUZZ,
    ),
    Mutant(
        "logits-without-bias",
        "bias forgotten",
        ROUTE,
        {"logits += tl.load(bias_ptr).to(tl.float32)": "logits += 0.0"},
        FUZZ,
    ),
    Mutant(
        "router-weight-atomics",
        "order of programs",
        ROUTE,
        {
            "tl.store(partial_ptr + part * D + d, total": "tl.atomic_add(partial_ptr + d, total",
            "accumulator(slices, x.shape[2], like=x)": "accumulator(1, x.shape[2], like=x).zero_()",
        },
        triton("same_bits", "'order and router_logits'"),
    ),
    Mutant(
        "router-weight-double-count",
        "partial sums counted twice",
        ROUTE,
        {"tl.minimum(part * ROWS + ROWS, rows)": "tl.minimum(part * ROWS + ROWS + 1, rows)"},
        FUZZ,
    ),
    Mutant("topk-one-more", "k+1", ROUTE, {"    wanted = keep\n": "    wanted = keep + 1\n"}, TRITON_SELECT),
    Mutant(
        "topk-places-of-dropped-tokens",
        "wrong sentinel",
        ROUTE,
        {"tl.where(kept, first + place, -1)": "tl.where(kept, first + place, 0)"},
        triton("score_matrices", "cu_seqlens_and_the_row_map"),
    ),
    Mutant(
        "topk-ties-to-the-highest-index",
        "reversed tie",
        ROUTE,
        {"tl.cumsum(tie, axis=0)": "tl.cumsum(tie, axis=0, reverse=True)"},
        TRITON_SELECT,
    ),
    Mutant(
        "topk-nan-by-its-bits",
        "NaN order",
        ROUTE,
        {"tl.where(logit == logit, key, 0), token < tokens": "key, token < tokens"},
        TRITON_SELECT,
    ),
    Mutant(
        "topk-minus-zero-below-zero",
        "-0 order",
        ROUTE,
        {"other=0.0) + 0.0  # -0 becomes +0": "other=0.0)"},
        TRITON_SELECT,
    ),
    Mutant(
        "topk-signed-compare",
        "signed key compare",
        ROUTE,
        {"(key > prefix)": "(key.to(tl.int32, bitcast=True) > prefix.to(tl.int32, bitcast=True))"},
        TRITON_SELECT,
    ),
    Mutant(
        "topk-prefix-of-wrong-digit",
        "wrong digit shift",
        ROUTE,
        {"(key >> shift >> 8) == (prefix >> shift >> 8)": "(key >> shift >> 16) == (prefix >> shift >> 16)"},
        TRITON_SELECT,
    ),
    Mutant(
        "topk-tokens-beyond-the-end",
        "missing tail mask",
        ROUTE,
        {"kept = (valid & (key > prefix))": "kept = (key > prefix)"},
        TRITON_SELECT,
    ),
    Mutant(
        "topk-small-bin-not-first",
        "two-bin prefix order",
        ROUTE,
        {"tl.where(in_small, place_small, small + place - place_small - 1)": "place"},
        TRITON_SELECT,
    ),
]
