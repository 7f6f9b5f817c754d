"""The products of a block: each alone, and those that end in the residual stream with their row step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffratio.evaluation.flops import JOINED, products
from diffratio_kernels import reference
from diffratio_kernels._backends import BACKENDS, choose, unavailable_reason
from diffratio_kernels.blocks.products import run_of
from diffratio_kernels.ops.gate_residual.op import run_gate_residual
from diffratio_kernels.ops.scatter_rescale.op import run_scatter_rescale
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.cases import Call, cast
from diffratio_kernels.types import Finish, Linear, PackedRows, Rescale, Run

from ..harness.options import Options
from ..harness.subject import Candidate, Subject
from ..peers import libraries
from .case import cost_of

Case = dict[str, Any]
Way = Callable[[Case], Tensor]


def subjects(options: Options, kept: float, keep: int, put: Call) -> Iterator[Subject]:
    """put: the call of `scatter_rescale`, whose rows the products end in; keep: how many a sample has."""
    shape = options.shape() | {"keep": keep}
    inputs = {name: Inputs(options, keep, *sizes) for name, sizes in products(options.transformer).items()}
    for name, make in inputs.items():
        cost = cost_of(name, options, keep)
        about = {"kept": kept, "flops": cost.operations, "moved": cost.bytes}
        candidates = (
            Candidate("torch", _multiply, **about),
            Candidate("quack", _quack_linear, _check_quack_linear, **about),
        )
        yield Subject("operator", name, options.dtype, shape, make, cost.bytes, candidates)
    for name, (product, row_step) in JOINED.items():
        cost = cost_of(name, options, keep)
        about = {"kept": kept, "flops": cost.operations, "moved": cost.bytes}
        candidates = tuple(  # the row step is ours, but for another library's
            Candidate(label, run, Check(name, row_step, label, run), ours=label != "quack", **about)
            for label, run in _ways(name, row_step, options, put.arguments["x"])
        )
        make = JoinedInputs(inputs[product], put)
        yield Subject("operator", name, options.dtype, shape, make, cost.bytes, candidates)


@dataclass(frozen=True)
class Inputs:
    """Seed -> inputs [B keep, inner], weight [columns, inner] and bias of a product."""

    options: Options
    keep: int
    columns: int
    inner: int

    def __call__(self, seed: int) -> Case:
        torch.manual_seed(seed)
        options, rows = self.options, self.options.batch * self.keep
        sizes = {"inputs": (rows, self.inner), "weight": (self.columns, self.inner), "bias": (self.columns,)}
        return {n: torch.randn(s, dtype=options.dtype, device=options.device) for n, s in sizes.items()}


@dataclass(frozen=True)
class JoinedInputs:
    """Seed -> those of the product, and what its row step gets."""

    product: Inputs
    put: Call

    def __call__(self, seed: int) -> Case:
        options = self.product.options
        return put_back(self.put, [self.product.keep] * options.batch) | self.product(seed)


def put_back(put: Call, counts: list[int]) -> Case:
    """Copies of the tensors of a call of `scatter_rescale`, its rows with the row map that a block's
    selection makes."""
    case = {name: t.clone() for name, t in put.arguments.items() if isinstance(t, Tensor)}
    (batch, tokens, _), index = case["x"].shape, case.pop("index")
    row_map = torch.full((batch * tokens,), -1, dtype=torch.int32, device=index.device)
    row_map[index] = torch.arange(len(index), dtype=torch.int32, device=index.device)
    return case | {"rows": PackedRows(index, tokens, counts, row_map=row_map)}


def _linear(case: Case) -> Linear:
    return Linear(case["weight"], case["bias"])


def _multiply(case: Case) -> Tensor:
    return _linear(case)(case["inputs"])


def _quack_linear(case: Case) -> Tensor:
    return libraries.quack().linear(case["inputs"], case["weight"], case["bias"])


def _check_quack_linear(case: Case) -> None:
    actual = _quack_linear(case)
    check_budget("linear quack", actual, _multiply(case), _multiply(cast(case, torch.float64)))


def _ways(name: str, row_step: str, options: Options, x: Tensor) -> Iterator[tuple[str, Way]]:
    """The library's product and the row step of each backend, by torch where there is none; then the
    one kernel, and QuACK's epilogue, which puts no rows in other places."""
    known = [n for n in options.backends if n in BACKENDS[row_step]]
    for own in [n for n in known if not unavailable_reason(n, options.device, options.dtype)] or [
        "reference"
    ]:
        run = run_of("mod_block", own, "auto", x, direct=True)
        yield f"torch + {own}", Apart(row_step, run)
    yield "triton", _ONE_KERNEL[name]
    if name == "linear_gate_residual":
        yield "quack", _quack_gate_residual


@dataclass(frozen=True)
class Apart:
    """A product, then its row step, as a block without a gradient does it: `gate_residual` in place."""

    row_step: str
    run: Run

    def __call__(self, case: Case) -> Tensor:
        rows, hidden, gate = case["rows"], case["hidden"], case["gate"]
        branch = _multiply(case)
        if self.row_step == "gate_residual":
            return run_gate_residual(self.run, hidden, branch, gate, rows)
        scores = case["logits"], Rescale()
        return run_scatter_rescale(self.run, case["x"], rows, hidden, branch, gate, scores)


def _linear_gate_residual(case: Case) -> Tensor:
    from diffratio_kernels.ops.fused_linear.gate_residual import linear_gate_residual

    hidden, inputs, gate = case["hidden"], case["inputs"], case["gate"]
    return linear_gate_residual(hidden, inputs, _linear(case), gate, case["rows"], in_place=True)


def _quack_gate_residual(case: Case) -> Tensor:
    given = (case[name] for name in ("hidden", "inputs", "weight", "bias", "gate"))
    return libraries.quack().linear_gate_residual(*given)


def _finish(case: Case, branch: Tensor) -> Finish:
    return Finish(case["x"], case["rows"], case["hidden"], branch, case["gate"], case["logits"], Rescale())


def _linear_scatter(case: Case) -> Tensor:
    from diffratio_kernels.ops.fused_linear.scatter import linear_scatter

    return linear_scatter(_finish(case, case["inputs"]), _linear(case))


_ONE_KERNEL = {"linear_gate_residual": _linear_gate_residual, "linear_scatter": _linear_scatter}
"""Triton is imported where one runs: elsewhere it may be missing."""


@dataclass(frozen=True)
class Check:
    """Asserts that the result of a way is within the budget of eager PyTorch."""

    name: str
    row_step: str
    label: str
    run: Way

    def __call__(self, case: Case) -> None:
        if self.label == "triton":
            choose(self.row_step, self.label, case["x"].device, case["x"].dtype)
        actual = self.run(case | {"hidden": case["hidden"].clone()})
        peer, gold = (self._eager(c) for c in (case, cast(case, torch.float64)))
        check_budget(f"{self.name} {self.label}", actual, peer, gold)

    def _eager(self, case: Case) -> Tensor:
        rows, hidden, gate, branch = case["rows"], case["hidden"], case["gate"], _multiply(case)
        if self.row_step == "gate_residual":
            return reference.gate_residual(hidden, branch, gate, rows)
        return reference.scatter_rescale(_finish(case, branch))
