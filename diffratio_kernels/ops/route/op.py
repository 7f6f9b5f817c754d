"""`route`: score every token, keep the best of each sample."""

import torch
from torch import Tensor

from ..._backends import kernels
from ..._checks import Check, counts
from ..._register import Operator, register
from ...types import Linear, PackedRows, Run
from .cu_seqlens import cu_seqlens_for


def select_rows(
    backend: str,
    logits: Tensor,
    keep: list[int],
    index: Tensor | None = None,
    keep_small: list[int] | None = None,
) -> PackedRows:
    """The rows that logits [B, N] select, or those of `index`, a selection made before."""
    tokens = logits.shape[1]
    if index is not None:
        return PackedRows(index, tokens, keep, cu_seqlens_for(keep, logits))
    index, cu_seqlens, row_map = kernels("route", backend).select(logits, keep, keep_small)
    return PackedRows(index, tokens, keep, cu_seqlens, row_map)


def _check(x, router_weight, keep, router_bias, index, keep_small):
    check = Check("route")
    check.tensor("x", x, "B N D")
    check.tensor("router_weight", router_weight, "D")
    check.optional("router_bias", router_bias, "1")
    keep = check.keep(keep)
    if keep_small is not None:
        check.keep_small(keep_small, keep)
    if index is not None:
        check.index(index, x.shape[0] * x.shape[1], keep)


def _launcher(backend, *arguments):
    return _route, (backend, *arguments)


def _route(backend, x, router_weight, keep, router_bias, index, keep_small):
    keep, keep_small = (counts(kept, x.shape[0]) for kept in (keep, keep_small))
    logits = kernels("route", backend).router_logits(x, router_weight, router_bias)
    rows = select_rows(backend, logits, keep, index, keep_small)
    # An operator's output is none of its inputs.
    return rows.index if index is None else index.clone(), rows.cu_seqlens, logits


def _gradients(backend, kept, _index, _offsets, grad_logits):
    x, router_weight, router_bias = kept
    grad_x, grad_weight = torch.ops.diffratio.router_logits_backward(
        grad_logits, x, router_weight, backend=backend
    )
    grad_bias = None if router_bias is None else grad_logits.sum().reshape(1)
    return {"x": grad_x, "router_weight": grad_weight, "router_bias": grad_bias}


def _backward(grad_logits, x, router_weight, *, backend):
    return kernels("route", backend).router_logits_backward(grad_logits, x, router_weight)


def _fake(x, _weight, keep, *_):
    logits = x.new_empty(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))
    kept = keep[0] * x.shape[0] if len(keep) == 1 else sum(keep)
    index = x.new_empty(kept, dtype=torch.int64)
    return index, x.new_empty(x.shape[0] + 1, dtype=torch.int32), logits


def _fake_backward(grad_logits, x, router_weight, *, backend):
    return x.new_empty(x.shape), router_weight.new_empty(router_weight.shape, dtype=grad_logits.dtype)


Operator(
    "route(Tensor x, Tensor router_weight, SymInt[] keep, *, Tensor? router_bias=None, Tensor? index=None, "
    'SymInt[]? keep_small=None, str backend="auto") -> (Tensor, Tensor, Tensor)',
    check=_check,
    launcher=_launcher,
    fake=_fake,
    gradients=_gradients,
    # No index: a checkpoint gives it in the second forward pass only.
    kept=("x", "router_weight", "router_bias"),
)
register(
    "router_logits_backward(Tensor grad_logits, Tensor x, Tensor router_weight, *, str backend) "
    "-> (Tensor, Tensor)",
    kernel=_backward,
    fake=_fake_backward,
)


def route(
    x: Tensor,
    router_weight: Tensor,
    keep: int | list[int],
    *,
    router_bias: Tensor | None = None,
    index: Tensor | None = None,
    keep_small: int | list[int] | None = None,
    backend: str = "auto",
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
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        index [T] int64 (kept rows of the flattened [B*N], ascending in each set), offsets [B+1] int32
        (cumulative kept counts) and logits [B, N] (fp32; fp64 for fp64 x; differentiable).

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> index, cu_seqlens, logits = route(x, router, 180)  # 180 tokens of each sample
    """
    return torch.ops.diffratio.route(
        x,
        router_weight,
        counts(keep),
        router_bias=router_bias,
        index=index,
        keep_small=counts(keep_small),
        backend=backend,
    )


def run_route(
    run: Run,
    x: Tensor,
    router: Linear,
    keep: list[int],
    index: Tensor | None = None,
    keep_small: list[int] | None = None,
) -> tuple[PackedRows, Tensor]:
    """The rows of x [B, N, D] that the router (weight [D], bias [1]) keeps, and its logits [B, N]."""
    if run.direct:
        logits = kernels("route", run.rows).router_logits(x, router.weight, router.bias)
        return select_rows(run.rows, logits, keep, index, keep_small), logits
    options = {"router_bias": router.bias, "index": index, "keep_small": keep_small, "backend": run.rows}
    index, cu_seqlens, logits = torch.ops.diffratio.route(x, router.weight, keep, **options)
    return PackedRows(index, x.shape[1], keep, cu_seqlens), logits
