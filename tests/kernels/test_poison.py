"""Nothing reads memory that nobody wrote: with NaN in every fresh allocation all results keep their bits."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels import activation, adaln, gather_adaln, mod_block, route, scatter_rescale
from diffratio_kernels.testing.budget import gradients
from diffratio_kernels.testing.cases import ModBlockCase, two_bin_arguments, two_bins_of
from tools.guards.poison import poisoned_memory

pytestmark = pytest.mark.usefixtures("every_instruction_set")
CASES = [
    ModBlockCase(seed=0, keep=(24,)),
    ModBlockCase(seed=1, keep=(13, 0), ragged_text=True),
    ModBlockCase(seed=2, keep=(5, 24), text=None, rescale="residual"),
    ModBlockCase(seed=3, keep=(0,)),
    ModBlockCase(seed=4, keep=(7,), rescale="output", dtype=torch.bfloat16),
    ModBlockCase(seed=5, keep=(1, 3), rescale="none", biases=False, dtype=torch.float16, layout="sliced"),
]

STEPS = ("route", "gather_adaln", "adaln", "activation", "scatter_rescale", "mod_block")
STEPS += ("two_bin_gelu", "two_bin_blend", "two_bin_attention", "two_bin_block")


def steps(case):
    """Name -> (function of one dict, its arguments) for the row operators and the block."""
    a = case.arguments()
    x, keep = a["x"], case.full_keep
    index, _, logits = route(x, a["router_weight"], keep)
    shift, scale, gate = a["modulation"].unbind(1)[:3]
    hidden, branch = (torch.randn(sum(keep), x.shape[2]).to(case.dtype) for _ in range(2))
    two_bins = two_bin_arguments(two_bins_of(case))
    del two_bins["route"]
    put = {"hidden": hidden, "branch": branch, "gate": gate, "logits": logits, "rescale": case.rescale}
    return {
        "route": (lambda **k: route(**k)[2], {"x": x, "router_weight": a["router_weight"], "keep": keep}),
        "gather_adaln": (
            lambda **k: torch.cat(gather_adaln(**k)),
            {"x": x, "index": index, "shift": shift, "scale": scale},
        ),
        "adaln": (adaln, {"rows": hidden, "index": index, "tokens": 24, "shift": shift, "scale": scale}),
        "activation": (
            activation,
            {"gate": hidden, "value": branch, "index": index, "logits": logits, "kind": "silu"},
        ),
        "scatter_rescale": (scatter_rescale, {"x": x, "index": index} | put),
        "mod_block": (mod_block, a),
    } | {op: (getattr(dk, op), arguments) for op, arguments in two_bins.items()}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case.seed}")
def test_fresh_memory_is_never_read(case, name):
    function, arguments = steps(case)[name]
    clean, clean_grads = gradients(function, arguments, seed=0)
    with poisoned_memory():
        plain = function(**arguments)
        poisoned, grads = gradients(function, arguments, seed=0)
    assert clean.isfinite().all() and torch.equal(clean, plain) and torch.equal(clean, poisoned)
    assert clean_grads.keys() == grads.keys()
    for key, grad in clean_grads.items():
        assert torch.equal(grad, grads[key]), key


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case.seed}")
def test_the_selection_is_written_in_full(case):
    arguments = case.arguments()
    call = (arguments["x"], arguments["router_weight"], case.full_keep)
    for keep_small in (None, two_bins_of(case).full_keep_small):
        clean = route(*call, keep_small=keep_small)
        with poisoned_memory():
            poisoned = route(*call, keep_small=keep_small)
        assert all(torch.equal(a, b) for a, b in zip(clean, poisoned, strict=True))
