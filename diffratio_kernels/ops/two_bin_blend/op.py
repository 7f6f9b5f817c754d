"""`two_bin_blend`: blend the residual streams of both bins, finish the kept rows, scatter them into a copy of
x."""

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import RESCALE, Check
from ..._register import first_order, register
from ...types import Bins, PackedRows, Rescale
from ..two_bin_gelu.op import sample_sums
from . import reference


class _TwoBinBlend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, *args):
        *tensors, rescale, score_scale = args
        ctx.save_for_backward(*tensors)
        ctx.options, ctx.backend = (rescale, score_scale), backend
        return torch.ops.diffratio.two_bin_blend(*args, backend=backend)

    @staticmethod
    @first_order
    def backward(ctx, grad_out):
        saved = ctx.saved_tensors  # once: checkpointing hands them out only once
        _, _, _, _, gate, logits, weight_large, cu_seqlens_large, _ = saved
        grad_x, grad_hidden, grad_branch, grad_gate, grad_logits, dots = (
            torch.ops.diffratio.two_bin_blend_backward(grad_out, *saved, *ctx.options, backend=ctx.backend)
        )
        grad_weight = sample_sums(dots, cu_seqlens_large).to(weight_large.dtype)
        return (
            None, grad_x, None, grad_hidden, grad_branch, grad_gate.to(gate.dtype),
            grad_logits.to(logits.dtype), grad_weight, None, None, None, None,
        )  # fmt: skip


def _check(
    x, index, hidden, branch, gate, logits, weight_large, cu_seqlens_large, cu_seqlens_small, rescale,
    score_scale
):  # fmt: skip
    check = Check("two_bin_blend")
    check.tensor("x", x, "B N D")
    check.index(index, x.shape[0] * x.shape[1])
    check.tensor("hidden", hidden, "T+S D", dtype_of=("x", x))
    check.tensor("branch", branch, "T D", dtype_of=("x", x))
    check.tensor("gate", gate, "B D")
    check.tensor("logits", logits, "B N")
    bins = _packed(x, index, hidden, weight_large, cu_seqlens_large, cu_seqlens_small).bins
    check.two_bins(bins, ("index", index.shape[0]), ("hidden", hidden.shape[0]))
    check.by_sample(index, x.shape[1], cu_seqlens_large)
    check.choice("rescale", rescale, RESCALE)
    check.positive("score_scale", score_scale)


def _packed(x, index, hidden, weight_large, cu_seqlens_large, cu_seqlens_small) -> PackedRows:
    rows = index.shape[0]
    bins = Bins(weight_large, cu_seqlens_large, cu_seqlens_small, rows, hidden.shape[0] - rows)
    return PackedRows(index, x.shape[1], bins=bins)


def _two_bin_blend(
    x, index, hidden, branch, gate, logits, weight_large, cu_seqlens_large, cu_seqlens_small,
    rescale="mlp", score_scale=1.0, *, backend="auto",
):  # fmt: skip
    bins = weight_large, cu_seqlens_large, cu_seqlens_small
    _check(x, index, hidden, branch, gate, logits, *bins, rescale, score_scale)
    chosen = choose("two_bin_blend", backend, x.device, x.dtype)
    rows = _packed(x, index, hidden, *bins)
    if chosen != "reference":
        rows.row_map = kernels("route", chosen).row_map_of(index, x.shape[0] * x.shape[1])
    module = kernels("two_bin_blend", chosen)
    return module.two_bin_blend(x, rows, hidden, branch, gate, logits, Rescale(rescale, score_scale))


def _two_bin_blend_differentiable(
    x, index, hidden, branch, gate, logits, weight_large, cu_seqlens_large, cu_seqlens_small,
    rescale="mlp", score_scale=1.0, *, backend="auto",
):  # fmt: skip
    bins = weight_large, cu_seqlens_large, cu_seqlens_small
    _check(x, index, hidden, branch, gate, logits, *bins, rescale, score_scale)
    chosen = choose("two_bin_blend", backend, x.device, x.dtype)
    if chosen == "reference":
        rows = _packed(x, index, hidden, *bins)
        how = Rescale(rescale, score_scale)
        return reference.two_bin_blend(x, rows, hidden, branch, gate, logits, how)
    return _TwoBinBlend.apply(chosen, x, index, hidden, branch, gate, logits, *bins, rescale, score_scale)


def _two_bin_blend_backward(
    grad_out, x, index, hidden, branch, gate, logits, weight_large, cu_seqlens_large, cu_seqlens_small,
    rescale, score_scale, *, backend,
):  # fmt: skip
    rows = _packed(x, index, hidden, weight_large, cu_seqlens_large, cu_seqlens_small)
    backward = kernels("two_bin_blend", backend).two_bin_blend_backward
    return backward(grad_out, x, rows, hidden, branch, gate, logits, Rescale(rescale, score_scale))


def _fake(
    x, index, hidden, branch, gate, logits, weight_large, cu_seqlens_large, cu_seqlens_small,
    rescale="mlp", score_scale=1.0, *, backend="auto",
):  # fmt: skip
    _check(
        x, index, hidden, branch, gate, logits, weight_large, cu_seqlens_large, cu_seqlens_small,
        rescale, score_scale,
    )  # fmt: skip
    return x.new_empty(x.shape)


def _fake_backward(grad_out, x, index, hidden, branch, gate, logits, *_, backend):
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide = {"dtype": dtype}
    return (
        x.new_empty(x.shape), hidden.new_empty(hidden.shape), branch.new_empty(branch.shape),
        gate.new_empty(gate.shape, **wide), logits.new_empty(logits.shape, **wide),
        x.new_empty(index.shape[0], **wide),
    )  # fmt: skip


def _autocast(x, index, hidden, branch, *args, **kwargs):
    with torch.autocast(x.device.type, enabled=False):
        return torch.ops.diffratio.two_bin_blend(
            x, index, hidden.to(x.dtype), branch.to(x.dtype), *args, **kwargs
        )


register(
    "two_bin_blend(Tensor x, Tensor index, Tensor hidden, Tensor branch, Tensor gate, Tensor logits, "
    "Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small, "
    'str rescale="mlp", float score_scale=1.0, *, str backend="auto") -> Tensor',
    kernel=_two_bin_blend,
    fake=_fake,
    differentiable=_two_bin_blend_differentiable,
    autocast=_autocast,
)
register(
    "two_bin_blend_backward(Tensor grad_out, Tensor x, Tensor index, Tensor hidden, Tensor branch, "
    "Tensor gate, Tensor logits, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small, "
    "str rescale, float score_scale, *, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_two_bin_blend_backward,
    fake=_fake_backward,
)


def two_bin_blend(
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    weight_large: Tensor,
    cu_seqlens_large: Tensor,
    cu_seqlens_small: Tensor,
    rescale: str = "mlp",
    score_scale: float = 1.0,
    *,
    backend: str = "auto",
) -> Tensor:
    """A copy of x with the kept rows of two bins blended and finished (paper section 3.3).

    With w the weight of the large bin, h = w large + (1 - w) small and omega = 1 on small rows, h = w large
    and omega = w on the others, u = gate * branch and s = score_scale * sigmoid(logit), a kept row becomes
    "mlp": (1 - omega) x + h + s u; "residual": x + s (h - omega x + u); "output": (1 - omega) x + s (h + u);
    "none": (1 - omega) x + h + u.

    Args:
        x: tokens [B, N, D].
        index: int64 [T]: each sample's large set, its small set first.
        hidden: the residual stream [T + S, D] of the T large rows of all samples, then of their S small rows.
        branch: fc2's output on the blended rows, its bias times omega, [T, D].
        gate: [B, D], any float dtype.
        logits: [B, N], of `route`.
        weight_large: [B], w of each sample.
        cu_seqlens_large, cu_seqlens_small: int32 [B+1], cumulative counts of the two sets.
        rescale: "mlp", "residual", "output" or "none", as above.
        score_scale: 2.0 for routers that start as the identity, 1.0 for the authors' (see `mod_block`).
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [B, N, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> index, large, logits = route(x, router, 180, keep_small=154)
        >>> small = torch.tensor([0, 154, 308], dtype=torch.int32)
        >>> both, weight = torch.randn(360 + 308, D), torch.tensor([0.3, 0.3])
        >>> out = two_bin_blend(x, index, both, branch, gate, logits, weight, large, small)
    """
    return torch.ops.diffratio.two_bin_blend(
        x, index, hidden, branch, gate, logits, weight_large, cu_seqlens_large, cu_seqlens_small,
        rescale, score_scale, backend=backend,
    )  # fmt: skip
