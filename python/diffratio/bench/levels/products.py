"""The products of a block: each alone, and those that end in the residual stream with their row step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffratio_kernels import ops, reference
from diffratio_kernels.kernels.triton import launchers as triton
from diffratio_kernels.ops.block_steps import steps_of
from diffratio_kernels.ops.dispatch import KERNELS, ROW_KERNELS, choose, why_not
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.calls import Call
from diffratio_kernels.testing.inputs import ModBlockCase, cast

from ..options import Options
from ..subject import Candidate, Subject
from ..work import JOINED, joined_work, product_work

Case = dict[str, Any]


def products(width: int, hidden: int) -> dict[str, tuple[int, int]]:
    """Product of a block -> its columns and inner dimension; rows are the kept ones. The text query and both
    output projections are "linear out"."""
    return {
        "linear qkv": (3 * width, width), "linear out": (width, width), "linear fc1": (hidden, width),
        "linear fc2": (width, hidden),
    }  # fmt: skip


def subjects(options: Options, kept: float, case: ModBlockCase, put: Call) -> Iterator[Subject]:
    """put: the call of `scatter_rescale`, whose rows the products end in."""
    keep = case.full_keep[0]
    shape = options.shape() | {"keep": keep}
    sizes = products(options.width, case.hidden)
    for name, (columns, inner) in sizes.items():
        flops, moved = product_work(options.batch * keep, columns, inner, options.dtype.itemsize)
        make = partial(_product, options.batch * keep, columns, inner, options)
        candidates = (Candidate("torch", _linear, kept=kept, flops=flops, moved=moved),)
        yield Subject("operator", name, options.dtype, shape, make, moved, candidates)
    for name, (product, row_step) in JOINED.items():
        flops, moved = joined_work(name, case)
        make = partial(_joined, put, case, partial(_product, options.batch * keep, *sizes[product], options))
        candidate = partial(Candidate, kept=kept, flops=flops, moved=moved, ours=True)  # the row step is
        candidates = tuple(
            candidate(label, run, partial(_check, name, row_step, label, run))
            for label, run in _ways(name, row_step, options, put.arguments["x"])
        )
        yield Subject("operator", name, options.dtype, shape, make, moved, candidates)


def _product(rows: int, columns: int, inner: int, options: Options, seed: int) -> Case:
    torch.manual_seed(seed)
    sizes = {"rows": (rows, inner), "weight": (columns, inner), "bias": (columns,)}
    return {n: torch.randn(s, dtype=options.dtype, device=options.device) for n, s in sizes.items()}


def _joined(put: Call, block: ModBlockCase, product: Callable[[int], Case], seed: int) -> Case:
    """The product, and what `scatter_rescale` puts back."""
    return put_back(put) | product(seed) | {"keep": block.full_keep, "tokens": block.tokens}


def put_back(put: Call) -> Case:
    """The tensors of a call of `scatter_rescale`, and the places that a block's selection writes."""
    case = {name: t.clone() for name, t in put.arguments.items() if isinstance(t, Tensor)}
    (batch, tokens, _), index = case["x"].shape, case["index"]
    place = torch.full((batch * tokens,), -1, dtype=torch.int32, device=index.device)
    place[index] = torch.arange(len(index), dtype=torch.int32, device=index.device)
    return case | {"place": place}


def _linear(case: Case) -> Tensor:
    return F.linear(case["rows"], case["weight"], case["bias"])


def _ways(name: str, row_step: str, options: Options, x: Tensor) -> Iterator[tuple[str, Callable]]:
    """The library's product and the row step of each implementation, by torch where there is none; then the
    one kernel."""
    known = [n for n in options.implementations if n in ops.IMPLEMENTATIONS[row_step]]
    for own in [n for n in known if not why_not(n, options.device, options.dtype)] or ["reference"]:
        apart = _gate_residual(own, x) if row_step == "gate_residual" else partial(_scatter_rescale, own)
        yield f"torch + {own}", apart
    yield "triton", partial(_one_kernel, name)


def _gate_residual(implementation: str, x: Tensor) -> Callable[[Case], Tensor]:
    """As a block without a gradient does it: hidden is written in place."""
    step = steps_of(implementation, "auto", x, in_place=True).gate_residual

    def run(case: Case) -> Tensor:
        return step(case["hidden"], _linear(case), *(case[n] for n in ("gate", "index", "tokens", "keep")))

    return run


def _scatter_rescale(implementation: str, case: Case) -> Tensor:
    arguments = *_put(case), _linear(case), case["gate"], case["logits"], "mlp", 1.0
    places = {"place": case["place"]} if implementation in ROW_KERNELS else {}
    return KERNELS["scatter_rescale"][implementation](*arguments, **places)


def _one_kernel(name: str, case: Case) -> Tensor:
    product = case["rows"], case["weight"], case["bias"]
    if name == "linear_gate_residual":
        of_rows = (case[n] for n in ("gate", "index", "tokens"))
        return triton.linear_gate_residual(case["hidden"], *product, *of_rows, in_place=True)
    return triton.linear_scatter(
        *_put(case), *product, case["gate"], case["logits"], "mlp", 1.0, case["place"]
    )


def _put(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    return case["x"], case["index"], case["hidden"]


def _check(name: str, row_step: str, label: str, run: Callable[[Case], Tensor], case: Case) -> None:
    """Assert that the result is within the budget of eager PyTorch."""
    if label == "triton":
        choose(row_step, label, case["x"].device, case["x"].dtype)
    actual = run(case | {"hidden": case["hidden"].clone()})
    peer, gold = (_eager(row_step, c) for c in (case, cast(case, torch.float64)))
    check_budget(f"{name} {label}", actual, peer, gold)


def _eager(row_step: str, case: Case) -> Tensor:
    if row_step == "gate_residual":
        of_rows = (case[n] for n in ("gate", "index", "tokens"))
        return reference.gate_residual(case["hidden"], _linear(case), *of_rows)
    return _scatter_rescale("reference", case)
