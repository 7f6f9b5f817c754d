"""`two_bin_blend`: blend the residual streams of both bins, finish the kept rows, scatter them into a copy of
x."""

import torch
from torch import Tensor

from ..._backends import kernels
from ..._checks import RESCALE, Check
from ..._register import Operator, empty_gradients, like_first, register
from ...types import Bins, Finish, PackedRows, Rescale
from ..two_bin_gelu.op import sample_sums


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
    rows, small = index.shape[0], hidden.shape[0] - index.shape[0]
    bins = Bins(weight_large, cu_seqlens_large, cu_seqlens_small, rows, small)
    check.two_bins(bins, ("index", rows), ("hidden", rows + small))
    check.by_sample(index, x.shape[1], cu_seqlens_large)
    check.choice("rescale", rescale, RESCALE)
    check.positive("score_scale", score_scale)


def _bundled(x, index, hidden, branch, gate, logits, weight_large, cu_seqlens_large, cu_seqlens_small, *how):
    """The arguments as backends take them; how: rescale and score_scale."""
    rows = index.shape[0]
    bins = Bins(weight_large, cu_seqlens_large, cu_seqlens_small, rows, hidden.shape[0] - rows)
    return Finish(x, PackedRows(index, x.shape[1], bins=bins), hidden, branch, gate, logits, Rescale(*how))


def _launcher(backend, *arguments):
    return kernels("two_bin_blend", backend).two_bin_blend, (_bundled(*arguments),)


def _gradients(backend, kept, grad_out):
    *_, cu_seqlens_large, _, _, _ = kept
    *grads, dots = torch.ops.diffratio.two_bin_blend_backward(grad_out, *kept, backend=backend)
    found = dict(zip(("x", "hidden", "branch", "gate", "logits"), grads, strict=True))
    return found | {"weight_large": sample_sums(dots, cu_seqlens_large)}


def _backward(grad_out, *arguments, backend):
    return kernels("two_bin_blend", backend).two_bin_blend_backward(grad_out, _bundled(*arguments))


def _fake_backward(grad_out, x, index, hidden, branch, gate, logits, *_, backend):
    return empty_gradients(x, hidden, branch, wide=(gate, logits, index))


_TENSORS = (
    "Tensor x, Tensor index, Tensor hidden, Tensor branch, Tensor gate, Tensor logits, Tensor weight_large, "
    "Tensor cu_seqlens_large, Tensor cu_seqlens_small, "
)
Operator(
    f'two_bin_blend({_TENSORS}str rescale="mlp", float score_scale=1.0, *, str backend="auto") -> Tensor',
    check=_check,
    launcher=_launcher,
    fake=like_first,
    gradients=_gradients,
    cast=("hidden", "branch"),
    cast_like="x",
)
register(
    f"two_bin_blend_backward(Tensor grad_out, {_TENSORS}str rescale, float score_scale, *, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=_backward,
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
