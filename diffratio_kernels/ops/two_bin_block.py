"""`two_bin_block`: two bins of one routed block as one computation (paper section 3.3)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .block_steps import steps_of
from .library import define
from .mod_block import check_block
from .two_bin_steps import Linears, two_bin_forward
from .validate import Check, counts, readable

_ONE_BIN = {"small": 1, "large": 0}
"""The bin that gets no backward -> what weight_large must be in every sample."""
_FORWARD_ONLY = ("auto", "none", *_ONE_BIN)


def _check(
    x, router_weight, keep_small, keep_large, weight_large, *args, forward_only="auto", **kwargs
) -> tuple[list[int], list[int]]:
    keep_large = check_block(
        "two_bin_block", x, router_weight, keep_large, *args, keep_name="keep_large", **kwargs
    )
    check = Check("two_bin_block")
    check.tensor("x", x, "B N D")
    check.tensor("weight_large", weight_large, "B")
    check.choice("forward_only", forward_only, _FORWARD_ONLY)
    if forward_only in _ONE_BIN and readable(weight_large) and (weight_large != _ONE_BIN[forward_only]).any():
        check.fail(f"forward_only={forward_only!r} needs a weight_large of {_ONE_BIN[forward_only]} only")
    return check.keep_small(keep_small, keep_large, "keep_large"), keep_large


def _forward_only(asked: str, weight_large: Tensor) -> str:
    """The bin that has no weight in any sample, "none" where that cannot be seen without a sync."""
    if asked != "auto":
        return asked
    if not readable(weight_large):
        return "none"
    return next((bin for bin, weight in _ONE_BIN.items() if bool((weight_large == weight).all())), "none")


def _run(in_place: bool, autocast: bool = False):
    def run(
        x, router_weight, keep_small, keep_large, weight_large, modulation, qkv_weight, qkv_bias, out_weight,
        out_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, num_heads, *,
        router_bias=None, context_kv=None, context_lengths=None, cross_q_weight=None, cross_q_bias=None,
        cross_out_weight=None, cross_out_bias=None, rescale="mlp", score_scale=1.0, eps=1e-6, mlp_eps=None,
        index=None, forward_only="auto", implementation="auto", attention="auto",
    ):  # fmt: skip
        weights = (qkv_weight, qkv_bias, out_weight, out_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
        options = dict(
            context_kv=context_kv, context_lengths=context_lengths, rescale=rescale,
            score_scale=score_scale, eps=eps, mlp_eps=mlp_eps,
        )  # fmt: skip
        cross = dict(
            cross_q_weight=cross_q_weight, cross_q_bias=cross_q_bias,
            cross_out_weight=cross_out_weight, cross_out_bias=cross_out_bias,
        )  # fmt: skip
        keep_small, keep_large = _check(
            x, router_weight, keep_small, keep_large, weight_large, modulation, *weights, num_heads,
            router_bias=router_bias, index=index, forward_only=forward_only, attention=attention,
            autocast=autocast, **options, **cross,
        )  # fmt: skip
        steps = steps_of(implementation, attention, x, in_place, "two_bin_block")
        index, _, logits, _ = steps.route(x, router_weight, keep_large, router_bias, index, keep_small)
        linears = Linears(
            qkv=partial(F.linear, weight=qkv_weight, bias=qkv_bias),
            out=partial(F.linear, weight=out_weight, bias=out_bias),
            fc1=partial(F.linear, weight=fc1_weight, bias=fc1_bias),
            fc2=partial(F.linear, weight=fc2_weight),
            fc2_bias=fc2_bias,
            fc2_adds_bias=False,
            cross_q=partial(F.linear, weight=cross_q_weight, bias=cross_q_bias),
            cross_out=partial(F.linear, weight=cross_out_weight, bias=cross_out_bias),
        )
        return two_bin_forward(
            steps, linears, x, index, logits, keep_small, keep_large, weight_large, modulation, num_heads,
            forward_only="none" if in_place else _forward_only(forward_only, weight_large), **options,
        )  # fmt: skip

    return run


def _fake(x, *args, implementation="auto", **kwargs):
    _check(x, *args, **kwargs)
    return x.new_empty(x.shape)


define(
    "two_bin_block(Tensor x, Tensor router_weight, SymInt[] keep_small, SymInt[] keep_large, "
    "Tensor weight_large, Tensor modulation, Tensor qkv_weight, Tensor? qkv_bias, Tensor out_weight, "
    "Tensor? out_bias, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, "
    "int num_heads, *, Tensor? router_bias=None, Tensor? context_kv=None, Tensor? context_lengths=None, "
    "Tensor? cross_q_weight=None, Tensor? cross_q_bias=None, Tensor? cross_out_weight=None, "
    'Tensor? cross_out_bias=None, str rescale="mlp", float score_scale=1.0, float eps=1e-6, '
    'float? mlp_eps=None, Tensor? index=None, str forward_only="auto", str implementation="auto", '
    'str attention="auto") -> Tensor',
    kernel=_run(in_place=True),
    fake=_fake,
    differentiable=_run(in_place=False),
    autocast=_run(in_place=False, autocast=True),
)


def two_bin_block(
    x: Tensor,
    router_weight: Tensor,
    keep_small: int | list[int],
    keep_large: int | list[int],
    weight_large: Tensor,
    modulation: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    num_heads: int,
    *,
    router_bias: Tensor | None = None,
    context_kv: Tensor | None = None,
    context_lengths: Tensor | None = None,
    cross_q_weight: Tensor | None = None,
    cross_q_bias: Tensor | None = None,
    cross_out_weight: Tensor | None = None,
    cross_out_bias: Tensor | None = None,
    rescale: str = "mlp",
    score_scale: float = 1.0,
    eps: float = 1e-6,
    mlp_eps: float | None = None,
    index: Tensor | None = None,
    forward_only: str = "auto",
    implementation: str = "auto",
    attention: str = "auto",
) -> Tensor:
    """weight_large F(x, keep_large) + (1 - weight_large) F(x, keep_small), packed (paper section 3.3).

    F is `mod_block`, whose help says which score_scale belongs to which start of a router.

    Args:
        x, router_weight, modulation, num_heads: as in `mod_block`.
        keep_small, keep_large: kept tokens of the two bins, one int or B ints each, keep_small <= keep_large.
            `torch.ops` takes lists only.
        weight_large: [B], any real numbers, differentiable.
        qkv_weight, qkv_bias, out_weight, out_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias: as in
            `mod_block`.
        router_bias, rescale, score_scale, eps, mlp_eps, implementation, attention: likewise.
        context_kv, context_lengths, cross_q_weight, cross_q_bias, cross_out_weight, cross_out_bias: likewise.
        index: int64 [T], a selection of both bins made before, each sample's small set first.
        forward_only: "small" or "large" where that bin has weight 0 in every sample and gets no backward,
            "none" for neither; "auto" looks at the weights where that needs no wait, on the CPU. Every
            gradient is the same.

    Returns:
        [B, N, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
    """
    return torch.ops.diffratio.two_bin_block(
        x, router_weight, counts(keep_small), counts(keep_large), weight_large, modulation,
        qkv_weight, qkv_bias, out_weight, out_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
        num_heads, router_bias=router_bias, context_kv=context_kv, context_lengths=context_lengths,
        cross_q_weight=cross_q_weight, cross_q_bias=cross_q_bias, cross_out_weight=cross_out_weight,
        cross_out_bias=cross_out_bias, rescale=rescale, score_scale=score_scale, eps=eps, mlp_eps=mlp_eps,
        index=index, forward_only=forward_only, implementation=implementation, attention=attention,
    )  # fmt: skip
