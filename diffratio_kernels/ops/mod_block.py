"""`mod_block`: one routed DiT block from x to x, the steps of this package around torch's own products; and
`mod_block_next`, which makes the next block's router logits where it writes the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .block_products import linear
from .block_steps import Steps, steps_of
from .dispatch import IMPLEMENTATIONS
from .library import define
from .validate import RESCALE, Check, counts, readable


def _block(
    steps: Steps,
    x,
    router_weight,
    keep,
    modulation,
    qkv_weight,
    qkv_bias,
    out_weight,
    out_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    num_heads,
    *,
    router_bias,
    context_kv,
    context_lengths,
    cross_q_weight,
    cross_q_bias,
    cross_out_weight,
    cross_out_bias,
    rescale,
    score_scale,
    eps,
    mlp_eps,
    index,
    logits,
    next_router,
) -> Tensor | tuple[Tensor, Tensor]:
    batch, tokens, _ = x.shape
    if sum(keep) == 0:
        out = x.clone(memory_format=torch.contiguous_format)
        return out if next_router is None else (out, steps.router_logits(out, *next_router))
    longest = max(keep)
    if steps.fp32_modulation:
        modulation = modulation.float()
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
    index, offsets, logits, place = steps.route(
        x, router_weight, keep, router_bias, index, None, logits=logits
    )

    hidden, normed = steps.gather_adaln(x, index, shift1, scale1, eps, out_weight)
    # Without a gradient all products share a buffer: on the CPU fresh pages cost percents of the block.
    widest = max(qkv_weight.shape[0], fc1_weight.shape[0])
    shared = normed.new_empty(normed.shape[0] * widest) if steps.in_place else None

    qkv = linear(normed, qkv_weight, qkv_bias, shared).unflatten(-1, (3, num_heads, -1))
    del normed
    attended = steps.self_attention(*qkv.unbind(1), offsets, offsets, longest, longest, None, None)
    of_rows = index, tokens, keep, shared
    hidden = steps.linear_gate_residual(hidden, attended.flatten(1), out_weight, out_bias, gate1, *of_rows)
    del qkv, attended

    if context_kv is not None:
        query = linear(hidden, cross_q_weight, cross_q_bias, shared).unflatten(-1, (num_heads, -1))
        length = context_kv.shape[1]
        context_offsets = reference.packed_offsets([length] * batch, x.device)
        key, value = context_kv.to(query.dtype).flatten(0, 1).unflatten(-1, (num_heads, -1)).unbind(1)
        attended = steps.cross_attention(
            query, key, value, offsets, context_offsets, longest, length, context_lengths, None
        )
        weights = cross_out_weight, cross_out_bias
        hidden = steps.linear_gate_residual(hidden, attended.flatten(1), *weights, None, *of_rows)
        del query, attended

    normed = steps.adaln(hidden, index, tokens, shift2, scale2, eps if mlp_eps is None else mlp_eps)
    put_back = steps.mlp(normed, fc1_weight, fc1_bias, fc2_weight, fc2_bias, shared)
    del normed, shared, of_rows
    return put_back(x, index, hidden, gate2, logits, rescale, score_scale, place)


_CROSS = ("cross_q_weight", "cross_q_bias", "cross_out_weight", "cross_out_bias")


def check_block(
    op, x, router_weight, keep, modulation, qkv_weight, qkv_bias, out_weight, out_bias,
    fc1_weight, fc1_bias, fc2_weight, fc2_bias, num_heads, *,
    router_bias=None, context_kv=None, context_lengths=None, rescale="mlp", score_scale=1.0,
    eps=1e-6, mlp_eps=None, index=None, logits=None, next_router_weight=None, next_router_bias=None,
    attention="auto", autocast=False, keep_name="keep", **cross,
):  # fmt: skip
    """The arguments of one routed block; returns the kept counts of all samples."""
    check = Check(op)
    like_x = {} if autocast else {"dtype_of": ("x", x)}
    check.tensor("x", x, "B N D")
    check.tensor("router_weight", router_weight, "D")
    check.optional("router_bias", router_bias, "1")
    keep = check.keep(keep, keep_name)
    check.heads(num_heads)
    check.tensor("modulation", modulation, "B 6 D")
    check.tensor("qkv_weight", qkv_weight, "3D D", **like_x)
    check.optional("qkv_bias", qkv_bias, "3D", **like_x)
    check.tensor("out_weight", out_weight, "D D", **like_x)
    check.optional("out_bias", out_bias, "D", **like_x)
    check.tensor("fc1_weight", fc1_weight, "F D", **like_x)
    check.optional("fc1_bias", fc1_bias, "F", **like_x)
    check.tensor("fc2_weight", fc2_weight, "D F", **like_x)
    check.optional("fc2_bias", fc2_bias, "D", **like_x)
    if context_kv is None:
        for name in _CROSS:
            if cross.get(name) is not None:
                check.fail(f"{name} needs context_kv")
        if context_lengths is not None:
            check.fail("context_lengths needs context_kv")
    else:
        check.tensor("context_kv", context_kv, "B M 2 D", **like_x)
        for name in ("cross_q_weight", "cross_out_weight"):
            if cross.get(name) is None:
                check.fail(f"{name} must be given together with context_kv")
            check.tensor(name, cross[name], "D D", **like_x)
            check.optional(
                name.replace("weight", "bias"), cross.get(name.replace("weight", "bias")), "D", **like_x
            )
        check.optional("context_lengths", context_lengths, "B", dtypes=(torch.int32,))
        _check_lengths(check, context_lengths, context_kv.shape[1])
    check.choice("rescale", rescale, RESCALE)
    check.choice("attention", attention, ("auto", *IMPLEMENTATIONS["attention"]))
    check.positive("score_scale", score_scale)
    check.positive("eps", eps)
    if mlp_eps is not None:
        check.positive("mlp_eps", mlp_eps)
    if index is not None:
        check.index(index, x.shape[0] * x.shape[1], keep, keep_name)
    check.optional("logits", logits, "B N", dtypes=(_dtype_of_logits(x),))
    check.optional("next_router_weight", next_router_weight, "D")
    check.optional("next_router_bias", next_router_bias, "1")
    return keep


def _dtype_of_logits(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _refuse_gradients(op: str, arguments) -> None:
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in arguments):
        raise NotImplementedError(f"{op}: no gradients with logits of another block; use mod_block alone")


def _check_lengths(check: Check, lengths: Tensor | None, room: int):
    if lengths is None or not readable(lengths) or not len(lengths):
        return
    low, high = lengths.aminmax()
    if low < 0 or high > room:
        check.fail(f"context_lengths={lengths.tolist()} must be in 0..{room} (tokens of context_kv)")


def _run(in_place: bool, autocast: bool = False, op: str = "mod_block"):
    def run(
        x, router_weight, keep, modulation, qkv_weight, qkv_bias, out_weight, out_bias,
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, num_heads, *,
        router_bias=None, context_kv=None, context_lengths=None, cross_q_weight=None, cross_q_bias=None,
        cross_out_weight=None, cross_out_bias=None, rescale="mlp", score_scale=1.0, eps=1e-6, mlp_eps=None,
        index=None, logits=None, next_router_weight=None, next_router_bias=None, implementation="auto",
        attention="auto",
    ):  # fmt: skip
        weights = (qkv_weight, qkv_bias, out_weight, out_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
        options = dict(
            router_bias=router_bias, context_kv=context_kv, context_lengths=context_lengths,
            cross_q_weight=cross_q_weight, cross_q_bias=cross_q_bias, cross_out_weight=cross_out_weight,
            cross_out_bias=cross_out_bias, rescale=rescale, score_scale=score_scale, eps=eps,
            mlp_eps=mlp_eps, index=index, logits=logits,
        )  # fmt: skip
        keep = check_block(
            op, x, router_weight, keep, modulation, *weights, num_heads, attention=attention,
            autocast=autocast, next_router_weight=next_router_weight, next_router_bias=next_router_bias,
            **options,
        )  # fmt: skip
        next_router = None if next_router_weight is None else (next_router_weight, next_router_bias)
        if not in_place and (logits is not None or next_router is not None):
            _refuse_gradients(
                op, (x, router_weight, modulation, *weights, *options.values(), *(next_router or ()))
            )
        steps = steps_of(implementation, attention, x, in_place, next_router=next_router)
        return _block(
            steps, x, router_weight, keep, modulation, *weights, num_heads, **options, next_router=next_router
        )

    return run


def _fake(x, router_weight, keep, modulation, *args, implementation="auto", **kwargs):
    check_block("mod_block", x, router_weight, keep, modulation, *args, **kwargs)
    return x.new_empty(x.shape)


def _fake_next(x, *args, implementation="auto", **kwargs):
    check_block("mod_block_next", x, *args, **kwargs)
    return x.new_empty(x.shape), x.new_empty(x.shape[:2], dtype=_dtype_of_logits(x))


_ARGUMENTS = (
    "Tensor x, Tensor router_weight, SymInt[] keep, Tensor modulation, Tensor qkv_weight, "
    "Tensor? qkv_bias, Tensor out_weight, Tensor? out_bias, Tensor fc1_weight, Tensor? fc1_bias, "
    "Tensor fc2_weight, Tensor? fc2_bias, int num_heads, *, Tensor? router_bias=None, "
    "Tensor? context_kv=None, Tensor? context_lengths=None, Tensor? cross_q_weight=None, "
    "Tensor? cross_q_bias=None, Tensor? cross_out_weight=None, Tensor? cross_out_bias=None, "
    'str rescale="mlp", float score_scale=1.0, float eps=1e-6, float? mlp_eps=None, Tensor? index=None, '
    'Tensor? logits=None, str implementation="auto", str attention="auto"'
)
define(
    f"mod_block({_ARGUMENTS}) -> Tensor",
    kernel=_run(in_place=True),
    fake=_fake,
    differentiable=_run(in_place=False),
    # The steps run with autocast on: the products are cast, the residual stream keeps the dtype of x.
    autocast=_run(in_place=False, autocast=True),
)
define(
    f"mod_block_next({_ARGUMENTS}, Tensor next_router_weight, Tensor? next_router_bias=None) "
    "-> (Tensor, Tensor)",
    kernel=_run(in_place=True, op="mod_block_next"),
    fake=_fake_next,
    differentiable=_run(in_place=False, op="mod_block_next"),
    autocast=_run(in_place=False, autocast=True, op="mod_block_next"),
)


def mod_block(
    x: Tensor,
    router_weight: Tensor,
    keep: int | list[int],
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
    logits: Tensor | None = None,
    implementation: str = "auto",
    attention: str = "auto",
) -> Tensor:
    """One routed DiT block F(x, keep) (paper section 3.2): `torch.ops.diffratio.mod_block`.

    The router scores every token; the `keep` best of each sample go through attention and MLP among
    themselves, the others come back bit-equal.

    A router's start belongs to a scale. To begin as the pretrained block, draw tiny router weights (std 1e-3)
    and set score_scale=2.0: sigmoid(0) is 1/2, so every factor is about 1. The default of 1.0 is for the
    authors' routers, drawn as nn.Linear draws them: there the same 1/2 halves every MLP branch until
    training has made up for it. Whatever a router was trained with is what it needs at inference.

    Args:
        x: tokens [B, N, D], fp32, bf16, fp16 or fp64.
        router_weight: [D], any float dtype.
        keep: kept tokens of each sample, one int or B ints in 0..N. `torch.ops` takes a list only.
        modulation: [B, 6, D], any float dtype: shift1, scale1, gate1, shift2, scale2, gate2.
        qkv_weight, qkv_bias: [3D, D] and [3D] or None. All weights have the dtype of x (any under autocast).
        out_weight, out_bias: attention's output, [D, D] and [D] or None.
        fc1_weight, fc1_bias: of the MLP, [F, D] and [F] or None; its GELU is the tanh one.
        fc2_weight, fc2_bias: [D, F] and [D] or None.
        num_heads: H; D / H must be a multiple of 8.
        router_bias: [1], any float dtype.
        context_kv: projected text keys and values [B, M, 2, D]; None for a block without cross-attention.
        context_lengths: int32 [B], how many of the M text tokens count.
        cross_q_weight, cross_q_bias: cross-attention's query, [D, D] and [D] or None.
        cross_out_weight, cross_out_bias: its output, [D, D] and [D] or None.
        rescale: what the factor score_scale * sigmoid(logit) multiplies: "mlp" (the MLP branch), "residual",
            "output" or "none", as in `scatter_rescale`.
        score_scale: 2.0 for routers that start as the identity, 1.0 for the authors'.
        eps, mlp_eps: of the layer norms before attention and before the MLP; mlp_eps None is eps.
        index: int64 [T], a selection made before: rows of the flattened [B*N], sample after sample.
        logits: [B, N] in at least fp32, what the router gives for x, made before by `mod_block_next`;
            inference only.
        implementation: which kernels do the row steps: "auto", "native" (CPU), "cuda", "triton", "reference".
        attention: "auto", or an implementation of `attention`, for the attention among kept tokens.

    Returns:
        [B, N, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
        NotImplementedError: a gradient is wanted together with `logits`.

    Example:
        >>> router = torch.randn(D) * 1e-3
        >>> y = mod_block(x, router, 180, modulation, qkv, None, out, None, fc1, None, fc2, None, H,
        ...               score_scale=2.0)
    """
    return torch.ops.diffratio.mod_block(
        x, router_weight, counts(keep), modulation, qkv_weight, qkv_bias, out_weight, out_bias,
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, num_heads, router_bias=router_bias,
        context_kv=context_kv, context_lengths=context_lengths, cross_q_weight=cross_q_weight,
        cross_q_bias=cross_q_bias, cross_out_weight=cross_out_weight, cross_out_bias=cross_out_bias,
        rescale=rescale, score_scale=score_scale, eps=eps, mlp_eps=mlp_eps, index=index, logits=logits,
        implementation=implementation, attention=attention,
    )  # fmt: skip


def mod_block_next(
    x: Tensor,
    router_weight: Tensor,
    keep: int | list[int],
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
    logits: Tensor | None = None,
    implementation: str = "auto",
    attention: str = "auto",
    next_router_weight: Tensor,
    next_router_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`mod_block`, and what the router of the next block gives for its output: the `logits` of that block.

    The CUDA and Triton kernels make the logits where they write the rows, the others in a step of its own.

    Args:
        x, router_weight, keep, modulation, num_heads: as in `mod_block`.
        qkv_weight, qkv_bias, out_weight, out_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias: likewise.
        router_bias, rescale, score_scale, eps, mlp_eps, index, logits, implementation, attention: likewise.
        context_kv, context_lengths, cross_q_weight, cross_q_bias, cross_out_weight, cross_out_bias: likewise.
        next_router_weight: [D], any float dtype.
        next_router_bias: [1] or None.

    Returns:
        out [B, N, D] in the dtype of x, and next_logits [B, N] in at least fp32, of the rows as stored.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
        NotImplementedError: a gradient is wanted.
    """
    return torch.ops.diffratio.mod_block_next(
        x, router_weight, counts(keep), modulation, qkv_weight, qkv_bias, out_weight, out_bias,
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, num_heads, router_bias=router_bias,
        context_kv=context_kv, context_lengths=context_lengths, cross_q_weight=cross_q_weight,
        cross_q_bias=cross_q_bias, cross_out_weight=cross_out_weight, cross_out_bias=cross_out_bias,
        rescale=rescale, score_scale=score_scale, eps=eps, mlp_eps=mlp_eps, index=index, logits=logits,
        implementation=implementation, attention=attention, next_router_weight=next_router_weight,
        next_router_bias=next_router_bias,
    )  # fmt: skip
