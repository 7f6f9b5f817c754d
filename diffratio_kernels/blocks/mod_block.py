"""`mod_block`: one routed DiT block from x to x, by raw weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._backends import BACKENDS
from .._checks import RESCALE, Check, counts, readable
from .._register import Shortcut, register
from ..ops.route.op import run_route
from ..types import Linear, Rescale
from .products import run_of
from .routed import routed
from .stream import Call, CrossAttention, Mlp, SelfAttention, Stream


@dataclass(slots=True)
class RawBlock:
    """The arguments of `mod_block`, checked and bundled."""

    call: Call
    router: Linear
    keep: list[int]
    index: Tensor | None
    rescale: Rescale
    backend: str
    attention: str


def raw_block(op: str, *args, keep_name: str = "keep", **kwargs) -> RawBlock:
    """Check and bundle the arguments of one routed block."""
    _check(op, keep_name, *args, **kwargs)
    return bundled(*args, **kwargs)


def _check(
    op, keep_name, x, router_weight, keep, modulation, qkv_weight, qkv_bias, out_weight, out_bias,
    fc1_weight, fc1_bias, fc2_weight, fc2_bias, num_heads, *,
    router_bias=None, context_kv=None, context_lengths=None, cross_q_weight=None, cross_q_bias=None,
    cross_out_weight=None, cross_out_bias=None, rescale="mlp", score_scale=1.0, eps=1e-6, mlp_eps=None,
    index=None, backend="auto", attention="auto",
):  # fmt: skip
    """Under autocast without the dtypes of weights."""
    check = Check(op)
    check.tensor("x", x, "B N D")
    casts = not x.is_meta and torch.is_autocast_enabled(x.device.type)  # which raises for the meta device
    like_x = {} if casts else {"dtype_of": ("x", x)}
    check.tensor("router_weight", router_weight, "D")
    check.optional("router_bias", router_bias, "1")
    keep = check.keep(keep, keep_name)
    check.heads(num_heads)
    check.tensor("modulation", modulation, "B 6 D")
    check.linear("qkv", qkv_weight, qkv_bias, "3D D", **like_x)
    check.linear("out", out_weight, out_bias, "D D", **like_x)
    check.linear("fc1", fc1_weight, fc1_bias, "F D", **like_x)
    check.linear("fc2", fc2_weight, fc2_bias, "D F", **like_x)
    weights = {"cross_q_weight": cross_q_weight, "cross_out_weight": cross_out_weight}
    if context_kv is not None:
        check.tensor("context_kv", context_kv, "B M 2 D", **like_x)
        for name, weight in weights.items():
            if weight is None:
                check.fail(f"{name} must be given together with context_kv")
        check.linear("cross_q", cross_q_weight, cross_q_bias, "D D", **like_x)
        check.linear("cross_out", cross_out_weight, cross_out_bias, "D D", **like_x)
        check.optional("context_lengths", context_lengths, "B", dtypes=(torch.int32,))
        _check_lengths(check, context_lengths, context_kv.shape[1])
    else:
        others = {"context_lengths": context_lengths, "cross_q_bias": cross_q_bias}
        for name, value in (weights | others | {"cross_out_bias": cross_out_bias}).items():
            if value is not None:
                check.fail(f"{name} needs context_kv")
    check.choice("rescale", rescale, RESCALE)
    check.choice("attention", attention, ("auto", *BACKENDS["attention"]))
    check.positive("score_scale", score_scale)
    check.positive("eps", eps)
    if mlp_eps is not None:
        check.positive("mlp_eps", mlp_eps)
    if index is not None:
        check.index(index, x.shape[0] * x.shape[1], keep, keep_name)


def bundled(
    x, router_weight, keep, modulation, qkv_weight, qkv_bias, out_weight, out_bias,
    fc1_weight, fc1_bias, fc2_weight, fc2_bias, num_heads, *,
    router_bias=None, context_kv=None, context_lengths=None, cross_q_weight=None, cross_q_bias=None,
    cross_out_weight=None, cross_out_bias=None, rescale="mlp", score_scale=1.0, eps=1e-6, mlp_eps=None,
    index=None, backend="auto", attention="auto",
) -> RawBlock:  # fmt: skip
    """The arguments of one routed block, that were checked."""
    cross = None
    if context_kv is not None:
        query, out = Linear(cross_q_weight, cross_q_bias), Linear(cross_out_weight, cross_out_bias)
        cross = CrossAttention(query, out, num_heads, context_kv, context_lengths)
    own = SelfAttention(Linear(qkv_weight, qkv_bias), Linear(out_weight, out_bias), num_heads)
    mlp = Mlp(Linear(fc1_weight, fc1_bias), Linear(fc2_weight, fc2_bias))
    image = Stream(x, modulation, own, mlp, eps, eps if mlp_eps is None else mlp_eps)
    router, how = Linear(router_weight, router_bias), Rescale(rescale, score_scale)
    keep = counts(list(keep), x.shape[0])
    return RawBlock(Call(image, cross), router, keep, index, how, backend, attention)


def _check_lengths(check: Check, lengths: Tensor | None, room: int) -> None:
    if lengths is None or not readable(lengths) or not len(lengths):
        return
    low, high = lengths.aminmax()
    if low < 0 or high > room:
        check.fail(f"context_lengths={lengths.tolist()} must be in 0..{room} (tokens of context_kv)")


def _compute(block: RawBlock, direct: bool) -> Tensor:
    x = block.call.image.tokens
    if sum(block.keep) == 0:
        return x.clone(memory_format=torch.contiguous_format)
    run = run_of("mod_block", block.backend, block.attention, x, direct)
    rows, logits = run_route(run, x, block.router, block.keep, block.index)
    return routed(block.call, rows, logits, block.rescale, run)


def _kernel(*args, **kwargs):
    return _compute(raw_block("mod_block", *args, **kwargs), direct=True)


def _unchecked(*args, **kwargs):
    return _compute(bundled(*args, **kwargs), direct=True)


def _differentiable(*args, **kwargs):
    """With autocast on too: the products are cast, the residual stream keeps the dtype of x."""
    return _compute(raw_block("mod_block", *args, **kwargs), direct=False)


def _fake(x, *args, **kwargs):
    raw_block("mod_block", x, *args, **kwargs)
    return x.new_empty(x.shape)


PARTS = (
    "Tensor modulation, Tensor qkv_weight, Tensor? qkv_bias, Tensor out_weight, Tensor? out_bias, "
    "Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, int num_heads, *, "
    "Tensor? router_bias=None, Tensor? context_kv=None, Tensor? context_lengths=None, "
    "Tensor? cross_q_weight=None, Tensor? cross_q_bias=None, Tensor? cross_out_weight=None, "
    'Tensor? cross_out_bias=None, str rescale="mlp", float score_scale=1.0, float eps=1e-6, '
    "float? mlp_eps=None, Tensor? index=None"
)
"""Of the schema: what a block with one bin and one with two are given."""
BACKENDS_AND_RESULT = 'str backend="auto", str attention="auto") -> Tensor'

_mod_block = register(
    f"mod_block(Tensor x, Tensor router_weight, SymInt[] keep, {PARTS}, {BACKENDS_AND_RESULT}",
    kernel=_kernel,
    fake=_fake,
    differentiable=_differentiable,
    autocast=_differentiable,
)
_mod_block = Shortcut(_mod_block, _unchecked)


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
    backend: str = "auto",
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
        backend: which kernels do the row steps: "auto", "cpu", "cuda", "triton" or "reference".
        attention: "auto", or a backend of `attention`, for the attention among kept tokens.

    Returns:
        [B, N, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> router = torch.randn(D) * 1e-3
        >>> y = mod_block(x, router, 180, modulation, qkv, None, out, None, fc1, None, fc2, None, H,
        ...               score_scale=2.0)
    """
    return _mod_block(
        x, router_weight, counts(keep), modulation, qkv_weight, qkv_bias, out_weight, out_bias,
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, num_heads, router_bias=router_bias,
        context_kv=context_kv, context_lengths=context_lengths, cross_q_weight=cross_q_weight,
        cross_q_bias=cross_q_bias, cross_out_weight=cross_out_weight, cross_out_bias=cross_out_bias,
        rescale=rescale, score_scale=score_scale, eps=eps, mlp_eps=mlp_eps, index=index,
        backend=backend, attention=attention,
    )  # fmt: skip
