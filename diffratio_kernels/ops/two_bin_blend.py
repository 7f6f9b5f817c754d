"""`two_bin_blend`: blend the residual streams of both bins, finish the kept rows, put them back."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import reference
from .dispatch import DIFFERENTIABLE, KERNELS, ROW_KERNELS, choose
from .library import define, define_backward
from .two_bin_gelu import sample_sums
from .validate import RESCALE, Check


class _TwoBinBlend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, *args):
        *tensors, rescale, score_scale = args
        ctx.save_for_backward(*tensors)
        ctx.options, ctx.implementation = (rescale, score_scale), implementation
        return torch.ops.diffratio.two_bin_blend(*args, implementation=implementation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        saved = ctx.saved_tensors  # once: checkpointing hands them out only once
        _, _, _, _, gate, logits, weight_large, large_offsets, _ = saved
        grad_x, grad_hidden, grad_branch, grad_gate, grad_logits, dots = (
            torch.ops.diffratio.two_bin_blend_backward(
                grad_out, *saved, *ctx.options, implementation=ctx.implementation
            )
        )
        grad_weight = sample_sums(dots, large_offsets).to(weight_large.dtype)
        return (
            None, grad_x, None, grad_hidden, grad_branch, grad_gate.to(gate.dtype),
            grad_logits.to(logits.dtype), grad_weight, None, None, None, None,
        )  # fmt: skip


KERNELS["two_bin_blend"] = {name: kernels.two_bin_blend for name, kernels in ROW_KERNELS.items()}
DIFFERENTIABLE["two_bin_blend"] = {name: partial(_TwoBinBlend.apply, name) for name in ROW_KERNELS}
for _table in (KERNELS, DIFFERENTIABLE):
    _table["two_bin_blend"]["reference"] = reference.two_bin_blend


def _check(
    x, index, hidden, branch, gate, logits, weight_large, large_offsets, small_offsets, rescale, score_scale
):  # fmt: skip
    check = Check("two_bin_blend")
    check.tensor("x", x, "B N D")
    check.index(index, x.shape[0] * x.shape[1])
    check.tensor("hidden", hidden, "T+S D", dtype_of=("x", x))
    check.tensor("branch", branch, "T D", dtype_of=("x", x))
    check.tensor("gate", gate, "B D")
    check.tensor("logits", logits, "B N")
    rows, both = ("index", index.shape[0]), ("hidden", hidden.shape[0])
    check.two_bins(weight_large, large_offsets, small_offsets, rows, both)
    check.by_sample(index, x.shape[1], large_offsets)
    check.choice("rescale", rescale, RESCALE)
    check.positive("score_scale", score_scale)


def _run(table):
    def run(
        x, index, hidden, branch, gate, logits, weight_large, large_offsets, small_offsets,
        rescale="mlp", score_scale=1.0, *, implementation="auto",
    ):  # fmt: skip
        args = (
            x, index, hidden, branch, gate, logits, weight_large, large_offsets, small_offsets,
            rescale, score_scale,
        )  # fmt: skip
        _check(*args)
        return table["two_bin_blend"][choose("two_bin_blend", implementation, x.device, x.dtype)](*args)

    return run


def _fake(
    x, index, hidden, branch, gate, logits, weight_large, large_offsets, small_offsets,
    rescale="mlp", score_scale=1.0, *, implementation="auto",
):  # fmt: skip
    _check(
        x, index, hidden, branch, gate, logits, weight_large, large_offsets, small_offsets,
        rescale, score_scale,
    )  # fmt: skip
    return x.new_empty(x.shape)


def _fake_backward(grad_out, x, index, hidden, branch, gate, logits, *_, implementation):
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


define(
    "two_bin_blend(Tensor x, Tensor index, Tensor hidden, Tensor branch, Tensor gate, Tensor logits, "
    "Tensor weight_large, Tensor large_offsets, Tensor small_offsets, "
    'str rescale="mlp", float score_scale=1.0, *, str implementation="auto") -> Tensor',
    kernel=_run(KERNELS),
    fake=_fake,
    differentiable=_run(DIFFERENTIABLE),
    autocast=_autocast,
)
define_backward(
    "two_bin_blend_backward(Tensor grad_out, Tensor x, Tensor index, Tensor hidden, Tensor branch, "
    "Tensor gate, Tensor logits, Tensor weight_large, Tensor large_offsets, Tensor small_offsets, "
    "str rescale, float score_scale, *, str implementation) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
)


def two_bin_blend(
    x: Tensor,
    index: Tensor,
    hidden: Tensor,
    branch: Tensor,
    gate: Tensor,
    logits: Tensor,
    weight_large: Tensor,
    large_offsets: Tensor,
    small_offsets: Tensor,
    rescale: str = "mlp",
    score_scale: float = 1.0,
    *,
    implementation: str = "auto",
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
        large_offsets, small_offsets: int32 [B+1], cumulative counts of the two sets.
        rescale: "mlp", "residual", "output" or "none", as above.
        score_scale: 2.0 for routers that start as the identity, 1.0 for the authors' (see `mod_block`).
        implementation: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [B, N, D] in the dtype of x.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or an implementation that cannot run here.
    """
    return torch.ops.diffratio.two_bin_blend(
        x, index, hidden, branch, gate, logits, weight_large, large_offsets, small_offsets,
        rescale, score_scale, implementation=implementation,
    )  # fmt: skip
