"""Planted in the Triton kernels with matrix products: attention and the MLP."""

from .mutant import Mutant
from .selections import FUZZ, OFFSETS, PRODUCTS, triton

OPS = "diffratio_kernels/ops/"
ATTENTION, GELU = OPS + "attention/triton.py", OPS + "mlp/triton.py"
LOOPS = "diffratio_kernels/_triton/attention.py"
SHARED = "tests/ops/test_attention.py -k share"
HEAD, OTHER = "head // GROUP * HEAD", "head % (H // GROUP) * HEAD"
VALUE = f"    v_ptr += first_key * STRIDE_V + {HEAD}_V"
JOINED, SCATTER = OPS + "fused_linear/gate_residual.py", OPS + "fused_linear/scatter.py"
PRODUCT = "diffratio_kernels/_triton/matmul.py"

TRITON_PRODUCTS = [
    Mutant(
        "attention-keys-beyond-the-end",
        "missing tail mask of keys",
        LOOPS,
        {'tl.where(start + tl.arange(0, BLOCK_N)[None, :] < end, scores, float("-inf"))': "scores"},
        FUZZ,
    ),
    Mutant(
        "attention-last-block-of-all-keys-but-one",
        "missing tail mask of keys",
        LOOPS,
        {"start + BLOCK_N > end": "start + BLOCK_N > end + 1"},
        "tests/ops/test_attention.py -k one_short",
    ),
    Mutant(
        "attention-sign-of-the-exponent",
        "wrong sign",
        LOOPS,
        {"tl.exp2(scores * scale - new_largest[:, None])": "tl.exp2(scores * -scale - new_largest[:, None])"},
        FUZZ,
    ),
    Mutant(
        "attention-values-beyond-the-end",
        "0 times NaN",
        LOOPS,
        {
            "load_part(v_ptr, n, end, STRIDE_V, D0, D1, D)\n            out1": (
                "load_part(v_ptr, n, end + BLOCK_N, STRIDE_V, D0, D1, D)\n            out1"
            )
        },
        "tests/ops/test_attention.py -k nan",
    ),
    Mutant(
        "attention-scale-of-zero",
        "-inf times 0",
        ATTENTION,
        {"max(scale * math.log2(math.e), torch.finfo(torch.float32).tiny)": "scale * math.log2(math.e)"},
        "tests/ops/test_attention.py -k tiny_scale",
    ),
    Mutant(
        "attention-half-a-tile-where-a-whole-one-fits",
        "a tile for another shape",
        "diffratio_kernels/_triton/tiles.py",
        {"if padded or few": "if few"},
        "tests/kernels/triton/test_tiles.py",
    ),
    Mutant(
        "attention-keys-by-their-count",
        "bits that depend on neighbours",
        "diffratio_kernels/_triton/tiles.py",
        {"return 64, keys, 4, stages": "return 64, keys // 2, 4, stages"},
        "tests/kernels/triton/test_tiles.py",
    ),
    Mutant(
        "attention-total-without-decay",
        "online softmax without decay",
        LOOPS,
        {"total = total * decay + tl.sum": "total = total + tl.sum"},
        FUZZ,
    ),
    Mutant(
        "attention-second-part-without-decay",
        "online softmax without decay",
        LOOPS,
        {"out1 * decay[:, None]": "out1"},
        FUZZ,
    ),
    Mutant(
        "attention-lengths-ignored",
        "key_lengths ignored",
        ATTENTION,
        {"tl.load(key_lengths_ptr + sample)": "tl.load(cu_seqlens_k_ptr + sample + 1) - first"},
        FUZZ,
    ),
    Mutant(
        "attention-lse-in-nats",
        "lse off by log2",
        ATTENTION,
        {"largest + tl.log2(total)": "largest + tl.log(total)"},
        FUZZ,
    ),
    Mutant(
        "attention-store-beyond-the-head",
        "dropped mask",
        LOOPS,
        {"mask=(rows[:, None] < count) & (column < D))\n": "mask=rows[:, None] < count)\n"},
        FUZZ,
    ),
    Mutant(
        "attention-no-keys",
        "division by zero",
        ATTENTION,
        {"total = tl.where(total == 0, 1.0, total)  #": "#"},
        FUZZ,
    ),
    Mutant(
        "attention-value-head-with-the-stride-of-key",
        "swapped stride",
        ATTENTION,
        {"GROUP * HEAD_V\n\n    query0": "GROUP * HEAD_K\n\n    query0"},
        triton("layouts", "attention"),
    ),
    Mutant(
        "attention-key-heads-in-turn",
        "wrong head",
        ATTENTION,
        {f"STRIDE_V + {HEAD}_V\n\n    q": f"STRIDE_V + {OTHER}_V\n\n    q"},
        SHARED,
    ),
    Mutant(
        "attention-key-gradient-of-one-head",
        "a part of a sum forgotten",
        ATTENTION,
        {".sum(2).to(t.dtype)": "[:, :, 0].to(t.dtype)"},
        SHARED,
    ),
    Mutant(
        "attention-gradient-by-another-key-head",
        "wrong head",
        ATTENTION,
        {f"STRIDE_K + {HEAD}_K\n{VALUE}\n    grad": f"STRIDE_K + {OTHER}_K\n{VALUE}\n    grad"},
        SHARED,
    ),
    Mutant(
        "attention-32-bit-rows",
        "64-bit cast dropped",
        LOOPS,
        {
            "    at = ptr + rows.to(tl.int64)[:, None] * STRIDE + column\n    if FIRST": (
                "    at = ptr + rows[:, None] * STRIDE + column\n    if FIRST"
            )
        },
        OFFSETS,
    ),
    Mutant(
        "attention-delta-forgotten",
        "delta forgotten",
        LOOPS,
        {"value0, value1, D1) - delta[:, None]\n": "value0, value1, D1)\n"},
        FUZZ,
    ),
    Mutant(
        "attention-query-gradient-in-log2",
        "wrong scale in a gradient",
        ATTENTION,
        {"grad_query0 * score_scale": "grad_query0 * scale"},
        FUZZ,
    ),
    Mutant(
        "attention-key-gradient-unscaled",
        "forgotten scale in a gradient",
        ATTENTION,
        {"grad_key1 * score_scale": "grad_key1"},
        FUZZ,
    ),
    Mutant(
        "attention-gradient-of-padding",
        "rows that do not count not zeroed",
        ATTENTION,
        {"torch.empty if seqlens.key_lengths is None else torch.zeros": "torch.empty"},
        FUZZ,
    ),
    Mutant(
        "gelu-without-bias",
        "bias forgotten",
        GELU,
        {"total += tl.load(bias_ptr + f, mask=f < F, other=0.0).to(tl.float32)": "total += 0.0"},
        FUZZ,
    ),
    Mutant(
        "gelu-slope-constant",
        "wrong derivative",
        OPS + "activation/triton.py",
        {"(1 + 3 * 0.044715 * x * x)": "(1 + 0.044715 * x * x)"},
        FUZZ,
    ),
    Mutant(
        "gelu-last-group-of-tiles",
        "unwritten output rows",
        PRODUCT,
        {"height = tl.minimum(row_tiles - first, GROUP)": "height = GROUP"},
        FUZZ,
    ),
    Mutant(
        "gelu-inner-dimension-unmasked",
        "dropped mask",
        PRODUCT,
        {"mask=(start + k[:, None] < K) & (f < F), other=0.0)": "mask=f < F, other=0.0)"},
        triton("fences", "linear_gelu"),
    ),
    Mutant(
        "product-right-half-at-the-left",
        "wrong columns",
        JOINED,
        {"    f += BLOCK_N // 2\n": ""},
        PRODUCTS,
    ),
    Mutant(
        "product-without-bias",
        "bias forgotten",
        PRODUCT,
        {"total += tl.load(bias_ptr + f, mask=f < F, other=0.0).to(tl.float32)": "total += 0.0"},
        PRODUCTS,
    ),
    Mutant(
        "product-sample-of-the-packed-row",
        "wrong sample's gate",
        JOINED,
        {"sample_of(index, tokens)": "sample_of(row, tokens)"},
        PRODUCTS,
    ),
    Mutant(
        "product-residual-of-the-packed-row",
        "wrong row",
        JOINED,
        {"source = index.to(tl.int64) if GATHER else row": "source = row"},
        PRODUCTS,
    ),
    Mutant(
        "product-residual-32-bit-row",
        "64-bit cast dropped",
        JOINED,
        {"source = index.to(tl.int64) if GATHER else row": "source = index if GATHER else row"},
        triton("large_offsets", "found"),
    ),
    Mutant(
        "product-put-without-the-row-mask",
        "dropped mask",
        SCATTER,
        {
            "(base + factor * delta).to(out_ptr.dtype.element_ty), mask=inside)": (
                "(base + factor * delta).to(out_ptr.dtype.element_ty), mask=f < F)"
            )
        },
        PRODUCTS,
    ),
    Mutant(
        "product-copies-no-bypassed-row",
        "unwritten output rows",
        SCATTER,
        {"if tl.load(row_map_ptr + row) < 0:": "if tl.load(row_map_ptr + row) < -1:"},
        PRODUCTS,
    ),
]
