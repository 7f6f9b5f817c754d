"""Planted above the kernels: choice of implementation, autograd, argument checks, launchers."""

from .mutant import Mutant
from .selections import BLOCKS, BUDGET, LAYOUTS

OPS = "diffratio_kernels/ops/"
DISPATCH, BLOCK = OPS + "dispatch.py", OPS + "mod_block.py"
CUDA = "diffratio_kernels/kernels/cuda.py"
NEXT_LOGITS = "python/diffratio/next_logits.py"
NEXT_LOGITS_TESTS = "tests/diffratio/test_next_logits.py"
GRADCHECK = "tests/ops/test_gradcheck.py -k 'adaln or route'"

OPERATORS = [
    Mutant(
        "explicit-choice-falls-back",
        "dispatch silently falling back",
        DISPATCH,
        {
            'raise NotAvailable(f"{op}: implementation={implementation!r} is not available: {reason}")': (
                'return choose(op, "auto", device, dtype)'
            )
        },
        "tests/ops/test_implementation.py",
    ),
    Mutant(
        "given-index-returned-as-it-is",
        "output aliases input",
        OPS + "route.py",
        {"index.clone() if given else index": "index"},
        "tests/ops/test_opcheck.py -k route",
    ),
    Mutant(
        "row-twice-in-the-index",
        "check removed",
        OPS + "validate.py",
        {"if index.bincount(minlength=rows).max() > 1:": "if False:"},
        "tests/ops/test_bad_inputs.py",
    ),
    Mutant(
        "shift-and-scale-gradients-swapped",
        "wrong gradient",
        OPS + "adaln.py",
        {
            "None, grad_x, None, None, grad_shift.to(shift.dtype), grad_scale.to(scale.dtype)": (
                "None, grad_x, None, None, grad_scale.to(shift.dtype), grad_shift.to(scale.dtype)"
            )
        },
        GRADCHECK,
    ),
    Mutant(
        "router-bias-gradient-missing",
        "bias forgotten",
        OPS + "route.py",
        {"None if router_bias is None else grad_logits.sum().to(router_bias.dtype).reshape(1)": "None"},
        GRADCHECK,
    ),
    Mutant(
        "mlp-weight-gradient-of-pre",
        "wrong gradient",
        OPS + "mlp.py",
        {"grad_out.t() @ inner": "grad_out.t() @ pre"},
        BLOCKS,
    ),
    Mutant(
        "attention-backward-with-default-scale",
        "scale forgotten in a gradient",
        OPS + "attention.py",
        {"ctx.options = max_query, max_key, scale": "ctx.options = max_query, max_key, None"},
        "tests/ops/test_attention_scale.py",
    ),
    Mutant(
        "mlp-eps-ignored",
        "eps forgotten",
        BLOCK,
        {"eps if mlp_eps is None else mlp_eps": "eps"},
        "tests/reference/test_diffusers_block.py",
    ),
    Mutant(
        "gate-of-the-wrong-branch",
        "wrong modulation",
        BLOCK,
        {"out_bias, gate1, *of_rows": "out_bias, gate2, *of_rows"},
        BLOCKS,
    ),
    Mutant(
        "in-place-on-a-copy",
        "in place: written elsewhere",
        OPS + "scatter_rescale.py",
        {" and x.is_contiguous()": ""},
        "tests/ops/test_in_place.py",
    ),
    Mutant(
        "tiles-asked-for-whole-rows",
        "wrong kernel chosen",
        OPS + "block_products.py",
        {"not self.whole_rows and ": ""},
        "tests/ops/test_next_logits.py -k 'whole_rows or twice'",
    ),
    Mutant(
        "given-logits-forgotten",
        "argument ignored",
        OPS + "route.py",
        {"    if logits is None:\n": "    if True:\n"},
        "tests/ops/test_next_logits.py -k 'given_logits and native'",
    ),
    Mutant(
        "logits-of-a-changed-tensor",
        "stale value used",
        NEXT_LOGITS,
        {"version == x._version and ": ""},
        NEXT_LOGITS_TESTS,
    ),
    Mutant(
        "logits-of-a-changed-router",
        "stale value used",
        NEXT_LOGITS,
        {" and _same(state, _state(router))": ""},
        NEXT_LOGITS_TESTS,
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
