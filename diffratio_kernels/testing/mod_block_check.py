"""One seed of the whole block, forward and backward, against the reference: tests and `make fuzz` call it."""

from __future__ import annotations

import torch

from .. import reference
from ..ops import dispatch, mod_block, route
from . import budget
from .inputs import cast, on_device, random_case

# Softmax ignores a shift of its logits, so these gradients sum terms that cancel; roundings follow the terms,
# whose size another gradient shows.
_CANCEL = {
    "qkv_bias": "qkv_weight",
    "cross_q_weight": "cross_out_weight",
    "cross_q_bias": "cross_out_weight",
}


def check_mod_block(
    seed: int, dtype: torch.dtype | None = None, implementation: str = "auto", device: str = "cpu"
) -> None:
    """Assert that `mod_block` of `random_case(seed, dtype)` and all its gradients are right.

    In fp64, where the implementation takes it, output and gradients equal the reference to 1e-12 of the
    largest value (thousands of roundings, far below any wrong formula). In the case's own dtype the output
    stays within the error budget, with and without autograd, and tokens not kept come back bit-equal.
    Gradients are held to the budget from 8 kept tokens up: with fewer they sum so few roundings that the
    error of the peer is a matter of luck, often zero, and only fp64 says whether the formula is right.
    """
    case = random_case(seed, dtype)
    drawn = on_device(case.arguments(), device)
    arguments, full = drawn | {"implementation": implementation}, drawn | {"keep": case.full_keep}
    # One selection for all: near-ties fall differently in another dtype, rightly so.
    x, router = arguments["x"], (arguments["router_weight"], arguments["keep"])
    index = route(x, *router, router_bias=arguments["router_bias"], implementation=implementation)[0]
    given = {"index": index}
    name = f"mod_block {str(case.dtype).removeprefix('torch.')}"

    gold, gold_grads = budget.gradients(reference.mod_block, cast(full, torch.float64) | given, seed)
    if dispatch.why_not(implementation, device, torch.float64) is None:
        _check_exact(cast(arguments, torch.float64) | given, gold, gold_grads, seed)

    peer, peer_grads = budget.gradients(reference.mod_block, full | given, seed)
    actual, grads = budget.gradients(mod_block, arguments, seed)
    bypassed = (
        torch.ones(x.shape[:2], device=device).flatten().index_fill(0, index, 0).bool().view(x.shape[:2])
    )
    for kind, out in (("inference", mod_block(**arguments)), ("training", actual)):
        budget.check_budget(f"{name}: output, {kind}", out, peer, gold)
        assert torch.equal(out[bypassed], x[bypassed]), f"seed {seed}: tokens not kept, {kind}"
    if index.shape[0] < 8:
        return
    shaken = [
        budget.gradients(reference.mod_block, budget.shake(full, case.dtype, seed + j) | given, seed)[1]
        for j in range(4)
    ]
    for each in (grads, peer_grads, gold_grads, *shaken):
        if "router_bias" in each:  # a single number has no statistics of its own: one more column, of ones
            each["router_weight"] = torch.cat([each["router_weight"], each.pop("router_bias")])
    for key, grad in grads.items():
        if key in _CANCEL and not gold_grads[key].any():
            continue  # one text token: the softmax of one logit is constant, and the peer has no error at all
        scale = gold_grads[_CANCEL[key]].abs().max() if key in _CANCEL else 0.0
        floor = [other[key] for other in shaken]
        budget.check_budget(f"{name}: d {key}", grad, peer_grads[key], gold_grads[key], 3, floor, scale)


def _check_exact(double: dict, gold: torch.Tensor, gold_grads: dict, seed: int) -> None:
    exact, exact_grads = budget.gradients(mod_block, double, seed)
    largest = max(grad.abs().max() for grad in gold_grads.values() if grad.numel())
    for out in (mod_block(**double), exact):
        assert (out - gold).abs().max() <= 1e-12 * gold.abs().max(), f"seed {seed}: fp64 output"
    for key, grad in exact_grads.items():
        assert (grad - gold_grads[key]).abs().max() <= 1e-12 * largest, f"seed {seed}: fp64 gradient of {key}"
