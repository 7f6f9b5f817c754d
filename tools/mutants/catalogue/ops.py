"""Planted above the kernels: choice of backend, autograd, argument checks, launchers."""

from .mutant import Mutant
from .selections import BLOCKS, BUDGET, LAYOUTS

PACKAGE = "diffratio_kernels/"
OPS, BLOCKS_OF = PACKAGE + "ops/", PACKAGE + "blocks/"
CUDA = OPS + "cuda.py"
TEXT_CACHE = "python/diffratio/routing/text_cache.py"
TEXT_CACHE_TESTS = "tests/diffratio/routing/test_text_cache.py"
GRADCHECK = "tests/ops/properties/test_gradcheck.py -k 'adaln or route'"

OPERATORS = [
    Mutant(
        "explicit-choice-falls-back",
        "dispatch silently falling back",
        PACKAGE + "_backends.py",
        {
            'raise NotAvailable(f"{op}: backend={backend!r} is not available: {reason}")': (
                'return choose(op, "auto", device, dtype)'
            )
        },
        "tests/ops/properties/test_backends.py",
    ),
    Mutant(
        "given-index-returned-as-it-is",
        "output aliases input",
        OPS + "route/op.py",
        {
            "    # An operator's output is none of its inputs.\n"
            "    return rows.index if index is None else index.clone(),": "    return rows.index,"
        },
        "tests/ops/properties/test_opcheck.py -k route",
    ),
    Mutant(
        "row-twice-in-the-index",
        "check removed",
        PACKAGE + "_checks.py",
        {"if index.bincount(minlength=rows).max() > 1:": "if False:"},
        "tests/ops/properties/test_bad_inputs.py",
    ),
    Mutant(
        "shift-and-scale-gradients-swapped",
        "wrong gradient",
        OPS + "adaln/op.py",
        {
            '{"rows": grad_rows, "shift": grad_shift, "scale": grad_scale}': (
                '{"rows": grad_rows, "shift": grad_scale, "scale": grad_shift}'
            )
        },
        GRADCHECK,
    ),
    Mutant(
        "router-bias-gradient-missing",
        "bias forgotten",
        OPS + "route/op.py",
        {"None if router_bias is None else grad_logits.sum().reshape(1)": "None"},
        GRADCHECK,
    ),
    Mutant(
        "mlp-weight-gradient-of-pre",
        "wrong gradient",
        OPS + "mlp/op.py",
        {"grad_out.t() @ inner": "grad_out.t() @ pre"},
        BLOCKS,
    ),
    Mutant(
        "route-pinned-tokens-tie-with-infinite-logits",
        "order of scores",
        OPS + "route/reference.py",
        {".clamp(max=torch.finfo(logits.dtype).max)": ""},
        "tests/ops/test_route.py",
    ),
    Mutant(
        "route-pinned-tokens-have-a-gradient",
        "gradient that is none",
        OPS + "route/op.py",
        {"grad_logits = grad_logits.masked_fill(pinned, 0)": "pass"},
        "tests/ops/test_route.py",
    ),
    Mutant(
        "route-neutral-logit-with-the-other-sign",
        "sign",
        OPS + "route/reference.py",
        {"-math.log(score_scale - 1)": "math.log(score_scale - 1)"},
        "tests/ops/test_route.py",
    ),
    Mutant(
        "attention-backward-with-default-scale",
        "scale forgotten in a gradient",
        OPS + "attention/op.py",
        {"lse, *flat)\n\n    def gradients": "lse, *flat[:-1], None)\n\n    def gradients"},
        "tests/ops/test_attention.py",
    ),
    Mutant(
        "mlp-eps-ignored",
        "eps forgotten",
        BLOCKS_OF + "mod_block.py",
        {"eps if mlp_eps is None else mlp_eps": "eps"},
        "tests/reference/test_diffusers_block.py",
    ),
    Mutant(
        "gate-of-the-wrong-branch",
        "wrong modulation",
        BLOCKS_OF + "routed.py",
        {"attended, out, gate1, rows)": "attended, out, gate2, rows)"},
        BLOCKS,
    ),
    Mutant(
        "in-place-on-a-copy",
        "in place: written elsewhere",
        OPS + "scatter_rescale/op.py",
        {" and x.is_contiguous()": ""},
        "tests/ops/test_scatter_rescale.py",
    ),
    Mutant(
        "fused-where-autograd-looks",
        "wrong kernel chosen",
        BLOCKS_OF + "products.py",
        {"if not run.direct or not isinstance(linear, Linear)": "if not isinstance(linear, Linear)"},
        "tests/blocks/test_fused_products.py",
    ),
    Mutant(
        "given-index-forgotten",
        "argument ignored",
        "diffratio_kernels/ops/route/op.py",
        {"(run.rows, logits, keep, index, keep_small)": "(run.rows, logits, keep, None, keep_small)"},
        "tests/blocks/test_selection.py",
    ),
    Mutant(
        "exact-products-without-matrix-units",
        "wrong kernel chosen",
        PACKAGE + "_backends.py",
        {"and name not in (unfit, exact)": "and name != unfit"},
        "tests/ops/properties/test_backends.py -k gpu",
    ),
    Mutant(
        "counts-of-a-traced-call-are-kept",
        "stale value used",
        OPS + "route/cu_seqlens.py",
        {"(copied_cu_seqlens if type(like) is Tensor else cu_seqlens_of)": "copied_cu_seqlens"},
        "tests/ops/properties/test_no_sync.py -k without_values",
    ),
    Mutant(
        "text-of-a-changed-tensor",
        "stale value used",
        TEXT_CACHE,
        {"(t.data_ptr(), t._version, t.shape": "(t.data_ptr(), t.shape"},
        f"{TEXT_CACHE_TESTS} -k never_stale",
    ),
    Mutant(
        "text-that-a-hook-has-changed",
        "stale value used",
        TEXT_CACHE,
        {"other == key and value._version == version": "other == key"},
        f"{TEXT_CACHE_TESTS} -k hooks_on_the_caption",
    ),
    Mutant(
        "strides-of-modulation-assumed",
        "swapped stride",
        CUDA,
        {"return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()": "return t"},
        LAYOUTS,
    ),
    Mutant(
        "half-of-the-partial-sums",
        "partial sums counted twice",
        CUDA,
        {"SLICE_TOKENS = 256": "SLICE_TOKENS = 512"},
        BUDGET,
    ),
]
