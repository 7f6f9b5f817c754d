"""Blocks under CUDA's autocast, whose list of operators is not the CPU's: x in fp32, products in bf16."""

import pytest
import torch

from diffratio_kernels import mod_block, reference, route, two_bin_block
from diffratio_kernels.testing.budget import check_budget, gradients, longest_sum
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase, cast, on_device
from tools.launchers.calls import kernel_device

SHAPE = {"seed": 7, "tokens": 64, "heads": 2, "head_dim": 72, "hidden": 136, "keep": (29, 64)}
OPTIONS = SHAPE | {"ragged_text": True, "router_bias": True}
BLOCKS = {
    "one bin": (mod_block, reference.mod_block, ModBlockCase(**OPTIONS)),
    "two bins": (
        two_bin_block,
        reference.two_bin_block,
        TwoBinCase(**OPTIONS, keep_small=(13, 64), weight_large=(0.3, 0.8)),
    ),
}
CHECKED = ("x", "modulation", "router_weight", "qkv_weight", "fc1_weight", "fc2_weight", "fc2_bias")

pytestmark = pytest.mark.gpu


def autocast(function):
    def run(**arguments):
        with torch.autocast(kernel_device(), torch.bfloat16):
            return function(**arguments)

    return run


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("bins", BLOCKS)
def test_gradients_are_within_the_error_budget(bins, backend):
    function, separate, case = BLOCKS[bins]
    arguments = on_device(case.arguments(), kernel_device())
    router = {n: arguments[n] for n in ("x", "router_weight", "router_bias", "keep_small") if n in arguments}
    arguments["index"] = route(keep=case.full_keep, **router)[0]
    gold, gold_grads = gradients(separate, cast(arguments, torch.float64), seed=0)
    peer, peer_grads = gradients(autocast(separate), arguments, seed=0)
    out, grads = gradients(autocast(function), arguments | {"backend": backend}, seed=0)
    assert out.dtype == torch.float32
    terms = longest_sum(arguments)
    check_budget(f"CUDA autocast, {bins}", out, peer, gold, terms=terms)
    for key in CHECKED:
        check_budget(
            f"CUDA autocast, {bins}: d {key}", grads[key], peer_grads[key], gold_grads[key], 3, terms=terms
        )
