"""What is left of routing where a layer makes the router logits of the next: a selection from given logits,
and a scatter that makes them, beside the steps that they replace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from diffratio_kernels import reference
from diffratio_kernels.ops.dispatch import KERNELS, ROW_KERNELS, choose
from diffratio_kernels.ops.route import route_with_places
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.calls import Call
from diffratio_kernels.testing.inputs import ModBlockCase, cast

from ..options import Options
from ..subject import Candidate, Subject
from ..work import operator_work
from .products import Case, put_back


def subjects(options: Options, kept: float, case: ModBlockCase, put: Call) -> Iterator[Subject]:
    """put: the call of `scatter_rescale`. The scatter that makes logits is a kernel of GPUs only."""
    shape = options.shape() | {"keep": case.full_keep[0]}
    make = partial(_case, put, case)
    own = [name for name in options.implementations if name in ROW_KERNELS]
    selections = [("torch eager", _topk, None)]
    selections += [(name, partial(_select, name), partial(_check_select, name)) for name in own]
    scatters = [
        (label, partial(run, name), partial(_check_scatter, run, name))
        for name in own
        if hasattr(ROW_KERNELS[name], "scatter_rescale_next")
        for label, run in ((f"{name}, two steps", _two_steps), (name, _scatter))
    ]
    for op, ways in (("select", selections), ("scatter_rescale_next", scatters)):
        flops, moved = operator_work(op, case)
        candidates = tuple(Candidate(*way, kept, flops, moved, way[0] != "torch eager") for way in ways)
        if candidates:
            yield Subject("operator", op, options.dtype, shape, make, moved, candidates)


def _case(put: Call, block: ModBlockCase, seed: int) -> Case:
    """Inputs of both."""
    torch.manual_seed(seed)
    x = put.arguments["x"]
    router = torch.randn(x.shape[2], device=x.device, dtype=x.dtype) * x.shape[2] ** -0.5
    return put_back(put) | {"keep": list(block.full_keep), "router": router}


def _topk(case: Case) -> Tensor:
    """Equal kept counts, as in the authors' pseudo-code."""
    selected = torch.topk(case["logits"], case["keep"][0], dim=1, sorted=False).indices
    return torch.sort(selected, dim=1).values


def _select(name: str, case: Case) -> Tensor:
    kernels = ROW_KERNELS[name]
    return route_with_places(kernels, case["x"], None, case["keep"], None, None, None, case["logits"])[0]


def _check_select(name: str, case: Case) -> None:
    """Assert that it is the exact selection."""
    choose("route", name, case["x"].device, case["x"].dtype)
    wanted, _ = reference.select_tokens(case["logits"], case["keep"])
    assert torch.equal(_select(name, case), wanted), f"select {name}: not the rows with the largest logits"


def _scatter(name: str, case: Case) -> tuple[Tensor, Tensor]:
    return ROW_KERNELS[name].scatter_rescale_next(*_finish(case), case["router"], None, place=case["place"])


def _two_steps(name: str, case: Case) -> tuple[Tensor, Tensor]:
    out = KERNELS["scatter_rescale"][name](*_finish(case), place=case["place"])
    return out, ROW_KERNELS[name].router_logits(out, case["router"], None)


def _finish(case: Case) -> tuple:
    names = ("x", "index", "hidden", "branch", "gate", "logits")
    return (*(case[name] for name in names), "mlp", 1.0)


def _check_scatter(run: Callable, name: str, case: Case) -> None:
    """Assert that the rows, and the logits of the rows as stored, are within the budget of eager PyTorch."""
    choose("scatter_rescale", name, case["x"].device, case["x"].dtype)
    rows, logits = run(name, case)
    eager = KERNELS["scatter_rescale"]["reference"]
    peer, gold = (eager(*_finish(c)) for c in (case, cast(case, torch.float64)))
    check_budget(f"scatter_rescale_next {name}", rows, peer, gold)
    peer, gold = (reference.router_logits(r, case["router"].to(r.dtype)) for r in (rows, rows.double()))
    check_budget(f"scatter_rescale_next {name}, logits", logits, peer, gold)
