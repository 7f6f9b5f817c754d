"""One seed of a whole block, of one bin or two, forward and backward, against the reference: tests and
`make fuzz` call it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffratio_kernels import mod_block, reference, route, two_bin_block
from diffratio_kernels._backends import unavailable_reason
from diffratio_kernels.testing import budget
from diffratio_kernels.testing.cases import cast, on_device

from .random_cases import random_case, random_two_bin_case

# Softmax ignores a shift of its logits, so these gradients sum terms that cancel; roundings follow the terms,
# whose size another gradient shows.
_CANCEL = {
    "qkv_bias": "qkv_weight",
    "cross_q_weight": "cross_out_weight",
    "cross_q_bias": "cross_out_weight",
}
_DRAWS = 12


def check_mod_block(
    seed: int, dtype: torch.dtype | None = None, backend: str = "auto", device: str = "cpu"
) -> None:
    """Assert that `mod_block` of `random_case(seed, dtype)` and all its gradients are right.

    In fp64, where the backend takes it, output and gradients equal the reference to 1e-12 of the
    largest value (thousands of roundings, far below any wrong formula). In the case's own dtype the output
    stays within the error budget, with and without autograd, and tokens not kept come back bit-equal.
    Gradients are held to the budget from 8 kept tokens up: with fewer they sum so few roundings that the
    error of the peer is a matter of luck, often zero, and only fp64 says whether the formula is right.
    """
    case = random_case(seed, dtype)
    counts = {"keep": case.full_keep}
    _check(mod_block, reference.mod_block, case, counts, seed, backend, device)


def check_two_bin_block(
    seed: int, dtype: torch.dtype | None = None, backend: str = "auto", device: str = "cpu"
) -> None:
    """The same of `two_bin_block` and `random_two_bin_case(seed, dtype)`, against two separate passes.

    Below 8 kept tokens the error of the two passes is a matter of luck for the output too, since torch's
    products sum in another order over the rows of both bins: there, the steps of the reference may set it.
    """
    case = random_two_bin_case(seed, dtype)
    counts = {"keep_small": case.full_keep_small, "keep_large": case.full_keep}
    _check(two_bin_block, reference.two_bin_block, case, counts, seed, backend, device)


def _check(function, separate, case, counts: dict, seed: int, backend: str, device: str) -> None:
    drawn = on_device(case.arguments(), device)
    arguments, full = drawn | {"backend": backend}, drawn | counts
    # One selection for all: near-ties fall differently in another dtype, rightly so.
    keep = {"keep" if name == "keep_large" else name: count for name, count in counts.items()}
    x, router = drawn["x"], {name: drawn[name] for name in ("router_weight", "router_bias")}
    given = {"index": route(x, **router, **keep, backend=backend)[0]}
    two_bins, few = "weight_large" in drawn, given["index"].shape[0] < 8
    name = f"{separate.__name__} {str(case.dtype).removeprefix('torch.')}"

    double = cast(full, torch.float64) | given
    gold, gold_grads = budget.gradients(separate, double, seed)
    if _takes_fp64(backend, device):
        _check_exact(function, cast(arguments, torch.float64) | given, gold, gold_grads, seed)

    peer, peer_grads = budget.gradients(separate, full | given, seed)
    actual, grads = budget.gradients(function, arguments, seed)
    terms = budget.longest_sum(full)
    bypassed = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
    bypassed.view(-1)[given["index"]] = False
    floor = [function(**arguments | {"backend": "reference"})] if two_bins and few else ()
    for kind, out in (("inference", function(**arguments)), ("training", actual)):
        budget.check_budget(f"{name}: output, {kind}", out, peer, gold, shaken=floor, terms=terms)
        assert torch.equal(out[bypassed], x[bypassed]), f"seed {seed}: tokens not kept, {kind}"
    if few:
        return
    shaken = [_shaken(full, case.dtype, seed + j) | given for j in range(4)]
    if two_bins:
        runs = [(function, arguments), (separate, full | given), (separate, double)]
        results = [_weight_gradients(*run, seed) for run in runs]
        floor = [_weight_gradients(separate, moved, seed) for moved in shaken]
        scale = gold.masked_fill(bypassed[..., None], 0).flatten(1).norm(dim=1).max()
        budget.check_budget(f"{name}: d weight_large", *results, shaken=floor, scale=scale, terms=terms)
    shaken_grads = [budget.gradients(separate, moved, seed)[1] for moved in shaken]
    _check_gradients(name, grads, peer_grads, gold_grads, shaken_grads, terms)


def _takes_fp64(backend: str, device: str) -> bool:
    return backend == "auto" or unavailable_reason(backend, device, torch.float64) is None


def _check_gradients(
    name: str, grads: dict, peer_grads: dict, gold_grads: dict, shaken: list[dict], terms: int
) -> None:
    for each in (grads, peer_grads, gold_grads, *shaken):
        if "router_bias" in each:  # a single number has no statistics of its own: one more column, of ones
            each["router_weight"] = torch.cat([each["router_weight"], each.pop("router_bias")])
        each.pop("weight_large", None)
    for key, grad in grads.items():
        if key in _CANCEL and not gold_grads[key].any():
            continue  # one text token: the softmax of one logit is constant, and the peer has no error at all
        scale = gold_grads[_CANCEL[key]].abs().max() if key in _CANCEL else 0.0
        floor = [other[key] for other in shaken]
        budget.check_budget(
            f"{name}: d {key}", grad, peer_grads[key], gold_grads[key], 3, floor, scale, terms
        )


def _shaken(arguments: dict, dtype: torch.dtype, seed: int) -> dict:
    """Weights are fp32 in any dtype: their roundings are not to be counted."""
    weight = {"weight_large": arguments["weight_large"].double()} if "weight_large" in arguments else {}
    return budget.shake(arguments, dtype, seed) | weight


def _weight_gradients(function: Callable[..., Tensor], arguments: dict, seed: int) -> Tensor:
    """Gradients of weight_large for several incoming ones: one number has no statistics of its own.

    Each is a product with the difference of the bins, maybe none; roundings follow the bins themselves.
    """
    weight = arguments["weight_large"].detach().clone().requires_grad_()
    out = function(**arguments | {"weight_large": weight})
    generator = torch.Generator().manual_seed(seed)
    incoming = torch.randn(_DRAWS, *out.shape, generator=generator).to(torch.bfloat16)
    draws = incoming.to(out.device, out.dtype)
    return torch.stack([torch.autograd.grad(out, weight, grad, retain_graph=True)[0] for grad in draws])


def _check_exact(function, double: dict, gold: Tensor, gold_grads: dict, seed: int) -> None:
    exact, exact_grads = budget.gradients(function, double, seed)
    largest = max(grad.abs().max() for grad in gold_grads.values() if grad.numel())
    for out in (function(**double), exact):
        assert (out - gold).abs().max() <= 1e-12 * gold.abs().max(), f"seed {seed}: fp64 output"
    for key, grad in exact_grads.items():
        assert (grad - gold_grads[key]).abs().max() <= 1e-12 * largest, f"seed {seed}: fp64 gradient of {key}"
