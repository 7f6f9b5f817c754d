"""Planted in two bins: the CPU's row kernels, and the operators above them."""

from .mutant import Mutant
from .selections import GELU, NATIVE_ROWS, TWO_BIN_BLOCKS

CPU, OPS = "csrc/cpu/", "diffratio_kernels/ops/"
SDPA = OPS + "two_bin_attention/sdpa.py"
BLOCK, TWO_BIN, BLENDED = (
    f"diffratio_kernels/blocks/{name}.py" for name in ("two_bin_block", "two_bin", "blended")
)
IDLE = "tests/blocks/test_two_bin_block.py -k backward"

TWO_BINS = [
    Mutant(
        "gelu-exponential-cut-off",
        "range too small",
        CPU + "activation.h",
        {"v < -87.0f ? -87.0f : v;": "v < -20.0f ? -20.0f : v;"},
        GELU,
    ),
    Mutant(
        "gelu-gate-as-a-difference",
        "cancellation",
        CPU + "activation.h",
        {"gate = z < 0 ? small : large;": "gate = z < 0 ? 1 - large : large;"},
        GELU,
    ),
    Mutant(
        "gelu-weight-dots-in-fp32",
        "accumulator too narrow",
        CPU + "two_bin_gelu.h",
        {"double dot = 0;": "A dot = 0;"},
        GELU,
    ),
    Mutant(
        "one-row-more-in-the-small-bin",
        "off by one",
        CPU + "two_bin.h",
        {"if (place >= bins.cu_seqlens_small": "if (place > bins.cu_seqlens_small"},
        NATIVE_ROWS,
    ),
    Mutant(
        "weight-does-not-move-x",
        "term of a gradient missing",
        CPU + "two_bin_blend.h",
        {"hidden_weight * l - x_weight * row": "hidden_weight * l"},
        NATIVE_ROWS,
    ),
    Mutant(
        "residual-takes-all-of-x",
        "wrong rescale mode",
        CPU + "two_bin_blend.h",
        {"(h - omega * x) + u": "(h - x) + u"},
        NATIVE_ROWS,
    ),
    Mutant(
        "small-bin-by-index-not-by-score",
        "wrong selection",
        CPU + "topk_select.h",
        {
            "topk_select_row(logits, tokens, keep_small, first_row, index);": (
                "std::copy(large.begin(), large.begin() + keep_small, index);"
            )
        },
        "tests/kernels/test_score_matrices.py -k 'small_bin and 64'",
    ),
    Mutant(
        "one-set-of-rows-for-both-bins",
        "argument not passed on",
        BLOCK,
        {"block.index, keep_small)": "block.index, None)"},
        TWO_BIN_BLOCKS,
    ),
    Mutant(
        "the-other-bin-has-no-weight",
        "branches swapped",
        BLOCK,
        {'{"small": 1, "large": 0}': '{"small": 0, "large": 1}'},
        "tests/blocks/test_two_bin_block.py -k gradient",
    ),
    Mutant(
        "backward-of-a-bin-without-weight",
        "work that nobody needs",
        TWO_BIN,
        {'_gradient(forward_only != "small")': "_gradient(True)"},
        IDLE,
    ),
    Mutant(
        "fc2-bias-once-on-every-row",
        "bias not weighed",
        BLENDED,
        {"(weight - added)[places.sample], 1": "1 - added, 1"},
        TWO_BIN_BLOCKS,
    ),
    Mutant(
        "fc2-bias-weighed-after-it-was-added",
        "cancellation",
        BLENDED,
        {
            "F.linear(inner, mlp.fc2.weight) if raw else mlp.fc2(inner)": "mlp.fc2(inner)",
            "bias, 0 if raw else 1, rows)": "bias, 1, rows)",
        },
        "tests/blocks/test_two_bin_block.py -k digits",
    ),
    Mutant(
        "log-sum-exp-of-the-small-set-for-all",
        "wrong normalisation",
        SDPA,
        {"(one_lse - both).exp()), both": "(one_lse - both).exp()), one_lse"},
        "tests/kernels/test_two_bin_sdpa.py",
    ),
    Mutant(
        "small-gradient-in-place-of-the-sum",
        "term of a gradient missing",
        SDPA,
        {"[:, :, : part.small] += own": "[:, :, : part.small].copy_(own)"},
        "tests/kernels/test_two_bin_sdpa.py",
    ),
    Mutant(
        "gradient-of-small-rows-lost",
        "term of a gradient missing",
        OPS + "two_bin_attention/two_passes.py",
        {"grad[: ctx.rows].index_add(0, small, grad[ctx.rows :])": "grad[: ctx.rows].clone()"},
        TWO_BIN_BLOCKS,
    ),
    Mutant(
        "small-samples-begin-anew",
        "wrong offsets",
        TWO_BIN,
        {"large.cu_seqlens[-1] + small.cu_seqlens[1:]": "small.cu_seqlens[1:]"},
        TWO_BIN_BLOCKS,
    ),
    Mutant(
        "weight-gradient-by-small-offsets",
        "wrong offsets",
        OPS + "two_bin_gelu/op.py",
        {"sample_sums(dots, cu_seqlens_large)": "sample_sums(dots, cu_seqlens_small)"},
        "tests/ops/properties/test_gradcheck.py -k two_bin_gelu",
    ),
    Mutant(
        "more-small-rows-than-large-ones",
        "check removed",
        "diffratio_kernels/_checks.py",
        {"if readable(large) and readable(little) and (little.diff() > large.diff()).any():": "if False:"},
        "tests/ops/properties/test_bad_inputs.py -k cu_seqlens_small",
    ),
    Mutant(
        "rows-of-another-sample",
        "check removed",
        "diffratio_kernels/_checks.py",
        {"if not _by_sample(index, tokens, kept):": "if False:"},
        "tests/ops/properties/test_bad_inputs.py -k two_bin_blend",
    ),
]
