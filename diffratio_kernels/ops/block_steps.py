"""The steps of a block by implementation: our kernels, and torch's products between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from .. import reference
from ..kernels.sdpa import runs
from ..kernels.triton import launchers as triton
from .attention import pick
from .block_products import Products
from .dispatch import DIFFERENTIABLE, KERNELS, ROW_KERNELS, choose
from .route import route_with_places


@dataclass
class Steps:
    """What `mod_block` and `two_bin_block` call. in_place: buffers are reused (no gradient, no autocast).
    fp32_modulation: the row steps read it in fp32, and one cast of [B, 6, D] saves one of each vector."""

    route: Callable
    router_logits: Callable
    gather_adaln: Callable
    adaln: Callable
    self_attention: Callable
    cross_attention: Callable
    gate_residual: Callable
    linear_gate_residual: Callable
    mlp: Callable
    two_bin_attention: Callable
    two_bin_gelu: Callable
    two_bin_blend: Callable
    in_place: bool
    fp32_modulation: bool


def steps_of(
    implementation: str,
    self_attention: str,
    x: Tensor,
    in_place: bool,
    op: str = "mod_block",
    next_router: tuple[Tensor, Tensor | None] | None = None,
) -> Steps:
    """Row steps by `implementation`; attention, gate and MLP by it too where it has them, else by "auto".

    next_router: weight and bias; what puts the rows back then returns the logits of that router too.
    """
    rows = choose(op, implementation, x.device, x.dtype)
    own = implementation if implementation in ("triton", "reference") else "auto"
    gate = choose("gate_residual", own, x.device, x.dtype)
    among = own if self_attention == "auto" else self_attention
    tables = KERNELS if in_place else DIFFERENTIABLE
    gate_residual = partial(_gate_residual_triton if gate == "triton" else _gate_residual_torch, in_place)
    router_logits = ROW_KERNELS.get(rows, reference).router_logits
    put_back = _scatter_rescale(tables, rows)
    if next_router is not None:
        put_back = _scatter_rescale_next(tables, rows, next_router, put_back, router_logits)
    products = Products(own, in_place, gate_residual, put_back, whole_rows=next_router is not None)
    return Steps(
        route=_route(tables, rows),
        router_logits=router_logits,
        gather_adaln=partial(_gather_adaln, tables["gather_adaln"][rows], products),
        adaln=tables["adaln"][rows],
        self_attention=_attention(tables, "attention", among),
        cross_attention=_attention(tables, "attention", own),
        gate_residual=gate_residual,
        linear_gate_residual=products.linear_gate_residual,
        mlp=products.mlp,
        two_bin_attention=_attention(tables, "two_bin_attention", among),
        two_bin_gelu=tables["two_bin_gelu"][rows],
        two_bin_blend=tables["two_bin_blend"][rows],
        in_place=in_place,
        fp32_modulation=rows == "cuda",
    )


def _route(tables: dict, rows: str) -> Callable:
    """index, offsets, logits, and where no gradient is wanted the places of the rows, or None.

    Its keyword `logits` are those made before, through which no gradient is wanted.
    """
    if rows not in ROW_KERNELS:
        return lambda *args, logits=None: (*reference.route(*args, logits), None)
    kernel = partial(route_with_places, ROW_KERNELS[rows])
    if tables is KERNELS:
        return kernel

    def route(*args, logits=None):
        return (*tables["route"][rows](*args), None) if logits is None else kernel(*args, logits)

    return route


def _scatter_rescale(tables: dict, rows: str) -> Callable:
    """Its last argument are the places that the route gave."""
    step = tables["scatter_rescale"][rows]
    if tables is KERNELS and rows in ROW_KERNELS:
        return lambda *args: step(*args[:-1], place=args[-1])
    return lambda *args: step(*args[:-1])


def _scatter_rescale_next(tables, rows, next_router, scatter_rescale, router_logits) -> Callable:
    """The same with the next router's logits: of one kernel where there is one, else by a step of its own."""
    if tables is KERNELS and rows in ("cuda", "triton"):
        step = ROW_KERNELS[rows].scatter_rescale_next
        return lambda *args: step(*args[:-1], *next_router, place=args[-1])

    def steps(*args):
        out = scatter_rescale(*args)
        return out, router_logits(out, *next_router)

    return steps


def _attention(tables: dict, op: str, implementation: str) -> Callable:
    return lambda query, *args: tables[op][pick(implementation, query, op)](query, *args)


def _gather_adaln(kernel, products, x, index, shift, scale, eps, out_weight=None) -> tuple[Tensor, Tensor]:
    """hidden and normed [T, D]. out_weight: that of the `linear_gate_residual` that alone reads hidden; where
    it can read the rows of x at the index, hidden is x itself."""
    arguments, rows = (x, index, shift, scale, eps), index.shape[0]
    if out_weight is None or not products.is_one_kernel("linear_gate_residual", x, rows, out_weight):
        return kernel(*arguments)
    return x, kernel(*arguments, keep_rows=False)[1]


def _gate_residual_triton(in_place, hidden, branch, gate, index, tokens, keep) -> Tensor:
    if in_place:
        return triton.gate_residual(hidden, branch, gate, index, tokens, in_place=True)
    return DIFFERENTIABLE["gate_residual"]["triton"](hidden, branch.to(hidden.dtype), gate, index, tokens)


def _gate_residual_torch(in_place, hidden, branch, gate, index, tokens, keep) -> Tensor:
    """hidden + gate * branch with each sample's own gate [B, D], without a [T, D] copy of the gate."""
    counts = runs(keep)
    firsts = [0, *accumulate(counts)][:-1]
    sizes = [n * keep[first] for first, n in zip(firsts, counts, strict=True)]
    parts = zip(hidden.split(sizes), branch.split(sizes), gate.split(counts), counts, strict=True)
    done = []
    for rows, updates, gates, n in parts:
        rows, updates = (t.unflatten(0, (n, t.shape[0] // n)) for t in (rows, updates))
        if in_place:
            rows.addcmul_(gates[:, None], updates)
        else:
            done.append(torch.addcmul(rows, gates[:, None], updates).to(hidden.dtype).flatten(0, 1))
    return hidden if in_place else torch.cat(done)
