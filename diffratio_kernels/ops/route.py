"""`route`: score every token, keep the best of each sample."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor

from .. import reference
from ..kernels import native
from .dispatch import DIFFERENTIABLE, KERNELS, ROW_KERNELS, choose
from .library import define, define_backward
from .validate import Check, counts


@lru_cache(maxsize=256)
def _copied_offsets(keep: tuple[int, ...], device: torch.device) -> Tensor:
    return reference.packed_offsets(list(keep), device)


_read_by_graphs: set[Tensor] = set()
"""Offsets that CUDA graphs clone in every replay: they outlive the cache."""


def packed_offsets(keep: list[int], device: torch.device) -> Tensor:
    """Offsets of the kept counts. Unequal ones are copied to the device once: a CUDA graph cannot do that."""
    if len(set(keep)) <= 1:
        return reference.packed_offsets(keep, device)
    offsets = _copied_offsets(tuple(keep), device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _read_by_graphs.add(offsets)
    return offsets.clone()


def route_with_places(kernels, x, router_weight, keep, router_bias, index, keep_small, logits=None):
    """What `route` returns and, where the index is made here, which packed row each row of x became [B*N].

    logits: made before, else they are made here.
    """
    if logits is None:
        logits = kernels.router_logits(x, router_weight, router_bias)
    logits = logits.contiguous()
    if index is not None:
        return index, packed_offsets(keep, x.device), logits, None
    written = len(set(keep)) == 1 and x.shape[1] > 0 and kernels is not native  # by the kernel itself
    offsets = None if written else packed_offsets(keep, x.device)
    small = None if keep_small is None else packed_offsets(keep_small, x.device).diff()
    index, offsets, place = kernels.topk_places(logits, keep, offsets, small)
    return index, offsets, logits, place


def _with(kernels):
    return lambda *args: route_with_places(kernels, *args)[:3]


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, x, router_weight, keep, router_bias, index, keep_small):
        index, offsets, logits = torch.ops.diffratio.route(
            x,
            router_weight,
            keep,
            router_bias=router_bias,
            index=index,
            keep_small=keep_small,
            implementation=implementation,
        )
        ctx.save_for_backward(x, router_weight, router_bias)
        ctx.implementation = implementation
        ctx.mark_non_differentiable(index, offsets)
        return index, offsets, logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, _index, _offsets, grad_logits):
        x, router_weight, router_bias = ctx.saved_tensors
        grad_x, grad_weight = torch.ops.diffratio.router_logits_backward(
            grad_logits, x, router_weight, implementation=ctx.implementation
        )
        grad_bias = None if router_bias is None else grad_logits.sum().to(router_bias.dtype).reshape(1)
        return None, grad_x, grad_weight.to(router_weight.dtype), None, grad_bias, None, None


KERNELS["route"] = {name: _with(kernels) for name, kernels in ROW_KERNELS.items()}
DIFFERENTIABLE["route"] = {name: partial(_Route.apply, name) for name in ROW_KERNELS}
for _table in (KERNELS, DIFFERENTIABLE):
    _table["route"]["reference"] = reference.route


def _check(x, router_weight, keep, router_bias, index, keep_small):
    check = Check("route")
    check.tensor("x", x, "B N D")
    check.tensor("router_weight", router_weight, "D")
    check.optional("router_bias", router_bias, "1")
    keep = check.keep(keep)
    if keep_small is not None:
        keep_small = check.keep_small(keep_small, keep)
    if index is not None:
        check.index(index, x.shape[0] * x.shape[1], keep)
    return keep, keep_small


def _run(table):
    def run(
        x, router_weight, keep, *, router_bias=None, index=None, keep_small=None, implementation="auto"
    ):  # fmt: skip
        keep, keep_small = _check(x, router_weight, keep, router_bias, index, keep_small)
        kernel = table["route"][choose("route", implementation, x.device, x.dtype)]
        given = index is not None
        index, offsets, logits = kernel(x, router_weight, keep, router_bias, index, keep_small)
        return index.clone() if given else index, offsets, logits

    return run


def _fake(
    x, router_weight, keep, *, router_bias=None, index=None, keep_small=None, implementation="auto"
):  # fmt: skip
    keep, _ = _check(x, router_weight, keep, router_bias, index, keep_small)
    logits = x.new_empty(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))
    index = x.new_empty(sum(keep), dtype=torch.int64)
    return index, x.new_empty(x.shape[0] + 1, dtype=torch.int32), logits


define(
    "route(Tensor x, Tensor router_weight, SymInt[] keep, *, Tensor? router_bias=None, Tensor? index=None, "
    'SymInt[]? keep_small=None, str implementation="auto") -> (Tensor, Tensor, Tensor)',
    kernel=_run(KERNELS),
    fake=_fake,
    differentiable=_run(DIFFERENTIABLE),
)


define_backward(
    "router_logits_backward(Tensor grad_logits, Tensor x, Tensor router_weight, *, str implementation) "
    "-> (Tensor, Tensor)",
    lambda grad_logits, x, router_weight, **_: (
        x.new_empty(x.shape), router_weight.new_empty(router_weight.shape, dtype=grad_logits.dtype)
    ),
)  # fmt: skip


def route(
    x: Tensor,
    router_weight: Tensor,
    keep: int | list[int],
    *,
    router_bias: Tensor | None = None,
    index: Tensor | None = None,
    keep_small: int | list[int] | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Score every token with the router and keep the `keep` best of each sample (paper section 3.2).

    Larger logit first, -0 equals +0, NaN below -inf, ties to the lowest token.

    Args:
        x: tokens [B, N, D].
        router_weight: [D], any float dtype.
        keep: one int, or B ints in 0..N. `torch.ops` takes a list only.
        router_bias: [1] or None, any float dtype.
        index: int64 [T], a selection made before (checkpointing, masks): only the logits are computed.
        keep_small: at most `keep`, asks for two bins: each sample's small set comes first in the index.
        implementation: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        index [T] int64 (kept rows of the flattened [B*N], ascending in each set), offsets [B+1] int32
        (cumulative kept counts) and logits [B, N] (fp32; fp64 for fp64 x; differentiable).

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
    """
    return torch.ops.diffratio.route(
        x,
        router_weight,
        counts(keep),
        router_bias=router_bias,
        index=index,
        keep_small=None if keep_small is None else counts(keep_small),
        implementation=implementation,
    )
