"""`route`: score every token, keep the best of each sample."""

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import Check, counts, readable
from ..._register import Operator, register
from ...types import Linear, PackedRows, Run
from .cu_seqlens import cu_seqlens_for
from .reference import accumulation_dtype, neutral_logit, ranked


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
    if not any(keep):  # asked for the logits alone
        index = torch.empty(0, dtype=torch.int64, device=logits.device)
        return PackedRows(index, tokens, keep, cu_seqlens_for(keep, logits))
    index, cu_seqlens, row_map = kernels("route", backend).select(logits, keep, keep_small)
    return PackedRows(index, tokens, keep, cu_seqlens, row_map)


def _check_given(x, logits):
    if x is None and logits is None:
        Check("route").fail("x must be a tensor, or logits must be given", TypeError)


def _check(x, router_weight, keep, router_bias, index, keep_small, logits, pinned, score_scale):
    _check_given(x, logits)
    check = Check("route")
    if logits is None:
        check.tensor("x", x, "B N D")
        check.tensor("router_weight", router_weight, "D")
        check.optional("router_bias", router_bias, "1")
    else:
        check.tensor("logits", logits, "B N")
        for name, value in (("x", x), ("router_weight", router_weight), ("router_bias", router_bias)):
            if value is not None:
                check.fail(f"{name} must be None where logits are given")
    keep = check.keep(keep)
    if keep_small is not None:
        check.keep_small(keep_small, keep)
    if index is not None:
        check.index(index, check.size("B") * check.size("N"), keep)
    if pinned is not None:
        check.tensor("pinned", pinned, "B N", dtypes=(torch.bool,))
        _check_pinned(check, pinned, {"keep": keep, "keep_small": keep_small})
        if not 1 <= score_scale < torch.inf:
            check.fail(f"score_scale={score_scale} must be at least 1: none else has a factor 1 for pinned")


def _check_pinned(check, pinned, kept):
    if not readable(pinned):
        return
    pinned = pinned.sum(1).tolist()
    for name, every in kept.items():
        for b, count in enumerate(() if every is None else counts(every, len(pinned))):
            if pinned[b] > count:
                check.fail(f"pinned holds {pinned[b]} tokens of sample {b}, {name}[{b}]={count} has no room")


def _chosen(backend, x, *flat, gradient=False):
    given = flat[5] if x is None else x
    return choose("route", backend, given.device, given.dtype)


def _launcher(backend, *arguments):
    return _route, (backend, *arguments)


def _route(backend, x, router_weight, keep, router_bias, index, keep_small, logits, pinned, score_scale):
    batch = (x if logits is None else logits).shape[0]
    keep, keep_small = (counts(kept, batch) for kept in (keep, keep_small))
    if logits is None:
        logits = kernels("route", backend).router_logits(x, router_weight, router_bias)
    else:
        logits = logits.to(accumulation_dtype(logits.dtype), copy=True)
    rows = select_rows(backend, ranked(logits, pinned), keep, index, keep_small)
    if pinned is not None:
        logits = logits.masked_fill(pinned, neutral_logit(score_scale))
    # An operator's output is none of its inputs.
    return rows.index if index is None else index.clone(), rows.cu_seqlens, logits


def _gradients(backend, kept, _index, _offsets, grad_logits):
    x, router_weight, router_bias, logits, pinned = kept
    if pinned is not None:
        grad_logits = grad_logits.masked_fill(pinned, 0)
    if logits is not None:
        return {"logits": grad_logits.to(logits.dtype)}
    grad_x, grad_weight = torch.ops.diffratio.router_logits_backward(
        grad_logits, x, router_weight, backend=backend
    )
    grad_bias = None if router_bias is None else grad_logits.sum().reshape(1)
    return {"x": grad_x, "router_weight": grad_weight, "router_bias": grad_bias}


def _backward(grad_logits, x, router_weight, *, backend):
    return kernels("route", backend).router_logits_backward(grad_logits, x, router_weight)


def _fake(x, _weight, keep, _bias, _index, _keep_small, logits, *_):
    given = x if logits is None else logits
    logits = given.new_empty(given.shape[:2], dtype=accumulation_dtype(given.dtype))
    kept = keep[0] * given.shape[0] if len(keep) == 1 else sum(keep)
    index = given.new_empty(kept, dtype=torch.int64)
    return index, given.new_empty(given.shape[0] + 1, dtype=torch.int32), logits


def _fake_backward(grad_logits, x, router_weight, *, backend):
    return x.new_empty(x.shape), router_weight.new_empty(router_weight.shape, dtype=grad_logits.dtype)


Operator(
    "route(Tensor? x, Tensor? router_weight, SymInt[] keep, *, Tensor? router_bias=None, Tensor? index=None, "
    "SymInt[]? keep_small=None, Tensor? logits=None, Tensor? pinned=None, float score_scale=1.0, "
    'str backend="auto") -> (Tensor, Tensor, Tensor)',
    check=_check,
    launcher=_launcher,
    fake=_fake,
    gradients=_gradients,
    # No index: a checkpoint gives it in the second forward pass only.
    kept=("x", "router_weight", "router_bias", "logits", "pinned"),
    chosen=_chosen,
)
register(
    "router_logits_backward(Tensor grad_logits, Tensor x, Tensor router_weight, *, str backend) "
    "-> (Tensor, Tensor)",
    kernel=_backward,
    fake=_fake_backward,
)


def route(
    x: Tensor | None,
    router_weight: Tensor | None,
    keep: int | list[int],
    *,
    router_bias: Tensor | None = None,
    index: Tensor | None = None,
    keep_small: int | list[int] | None = None,
    logits: Tensor | None = None,
    pinned: Tensor | None = None,
    score_scale: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Score every token with the router and keep the `keep` best of each sample (paper section 3.2).

    Larger logit first, -0 equals +0, NaN below -inf, ties to the lowest token.

    Args:
        x: tokens [B, N, D].
        router_weight: [D], any float dtype.
        keep: one int, or B ints in 0..N, pinned tokens among them. `torch.ops` takes a list only.
        router_bias: [1] or None, any float dtype.
        index: int64 [T], a selection made before (checkpointing, masks): only the logits are computed.
        keep_small: at most `keep`, asks for two bins: each sample's small set comes first in the index.
        logits: [B, N], any float dtype, of a router of one's own: given instead of x, router_weight and
            router_bias, which are None then.
        pinned: bool [B, N], tokens that are kept always, as text among the tokens of an image. They are part
            of `keep`, and of `keep_small`: so the host knows how many rows there are without reading a mask.
        score_scale: as in `mod_block`; pinned tokens get the logit for which their factor is 1, without a
            gradient.
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        index [T] int64 (kept rows of the flattened [B*N], ascending in each set, pinned ones in their
        places), offsets [B+1] int32 (cumulative kept counts) and logits [B, N] (fp32; fp64 for fp64;
        differentiable).

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> index, cu_seqlens, logits = route(x, router, 180)  # 180 tokens of each sample
        >>> text = torch.arange(x.shape[1]).expand(x.shape[:2]) < 8
        >>> index, cu_seqlens, logits = route(x, router, 8 + 180, pinned=text)
    """
    _check_given(x, logits)  # with neither the dispatcher has no tensor to go by
    return torch.ops.diffratio.route(
        x,
        router_weight,
        counts(keep),
        router_bias=router_bias,
        index=index,
        keep_small=counts(keep_small),
        logits=logits,
        pinned=pinned,
        score_scale=score_scale,
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
        logits = run_router_logits(run, x, router)
        return run_select(run, logits, keep, index, keep_small), logits
    options = {"router_bias": router.bias, "index": index, "keep_small": keep_small, "backend": run.rows}
    index, cu_seqlens, logits = torch.ops.diffratio.route(x, router.weight, keep, **options)
    return PackedRows(index, x.shape[1], keep, cu_seqlens), logits


def run_router_logits(run: Run, x: Tensor, router: Linear) -> Tensor:
    """The router's logits [B, N] of all tokens, of which a block selects by itself."""
    if run.direct:
        return kernels("route", run.rows).router_logits(x, router.weight, router.bias)
    return torch.ops.diffratio.route(x, router.weight, [0], router_bias=router.bias, backend=run.rows)[2]


def run_select(
    run: Run,
    logits: Tensor,
    keep: list[int],
    index: Tensor | None = None,
    keep_small: list[int] | None = None,
) -> PackedRows:
    """The rows that logits [B, N] select, without a gradient."""
    if run.direct:
        return select_rows(run.rows, logits, keep, index, keep_small)
    options = {"index": index, "keep_small": keep_small, "logits": logits.detach(), "backend": run.rows}
    index, cu_seqlens, _ = torch.ops.diffratio.route(None, None, keep, **options)
    return PackedRows(index, logits.shape[1], keep, cu_seqlens)
