"""`two_bin_gelu`: the blend of both bins' GELUs, before fc2; in training only what GELU was given is kept."""

import torch
from torch import Tensor

from ..._backends import kernels
from ..._checks import Check
from ..._register import Operator, empty_gradients, register
from ...types import Bins


def sample_sums(rows: Tensor, offsets: Tensor) -> Tensor:
    """[T] -> [B]: the sum over each sample's packed rows, in fp64 and in one order."""
    return torch.segment_reduce(rows.double(), "sum", offsets=offsets.long(), initial=0)


def _check(pre, weight_large, cu_seqlens_large, cu_seqlens_small, rows):
    check = Check("two_bin_gelu")
    check.tensor("pre", pre, "T+S F")
    bins = Bins(weight_large, cu_seqlens_large, cu_seqlens_small, rows, pre.shape[0] - rows)
    check.two_bins(bins, ("rows", rows), ("pre", pre.shape[0]))


def _launcher(backend, pre, weight_large, cu_seqlens_large, cu_seqlens_small, rows):
    bins = Bins(weight_large, cu_seqlens_large, cu_seqlens_small, rows, pre.shape[0] - rows)
    return kernels("two_bin_gelu", backend).two_bin_gelu, (pre, bins)


def _gradients(backend, kept, grad):
    *tensors, _ = kept
    _, _, cu_seqlens_large, _ = tensors
    grad_pre, dots = torch.ops.diffratio.two_bin_gelu_backward(grad, *tensors, backend=backend)
    return {"pre": grad_pre, "weight_large": sample_sums(dots, cu_seqlens_large)}


def _backward(grad, pre, weight_large, cu_seqlens_large, cu_seqlens_small, *, backend):
    rows = grad.shape[0]
    bins = Bins(weight_large, cu_seqlens_large, cu_seqlens_small, rows, pre.shape[0] - rows)
    return kernels("two_bin_gelu", backend).two_bin_gelu_backward(grad, pre, bins)


def _fake(pre, _weight, _large, _small, rows):
    return pre.new_empty(rows, pre.shape[1])


def _fake_backward(grad, pre, *_, backend):
    return empty_gradients(pre, wide=(grad[:, 0],))


Operator(
    "two_bin_gelu(Tensor pre, Tensor weight_large, Tensor cu_seqlens_large, Tensor cu_seqlens_small, "
    'SymInt rows, *, str backend="auto") -> Tensor',
    check=_check,
    launcher=_launcher,
    fake=_fake,
    gradients=_gradients,
)
register(
    "two_bin_gelu_backward(Tensor grad, Tensor pre, Tensor weight_large, Tensor cu_seqlens_large, "
    "Tensor cu_seqlens_small, *, str backend) -> (Tensor, Tensor)",
    kernel=_backward,
    fake=_fake_backward,
)


def two_bin_gelu(
    pre: Tensor,
    weight_large: Tensor,
    cu_seqlens_large: Tensor,
    cu_seqlens_small: Tensor,
    rows: int,
    *,
    backend: str = "auto",
) -> Tensor:
    """w gelu(large) + (1 - w) gelu(small), tanh GELU: fc2 is linear, and runs once on the blend.

    Args:
        pre: [T + S, F], the T large rows of all samples, then their S small rows again.
        weight_large: [B], w of each sample.
        cu_seqlens_large, cu_seqlens_small: int32 [B+1]: sample b's large rows, the first of which are its
            small set.
        rows: T.
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, F] in the dtype of pre.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> large = torch.tensor([0, 180, 360], dtype=torch.int32)
        >>> small = torch.tensor([0, 154, 308], dtype=torch.int32)
        >>> pre, weight = torch.randn(360 + 308, F), torch.tensor([0.3, 0.3])
        >>> inner = two_bin_gelu(pre, weight, large, small, 360)  # [360, F]
    """
    return torch.ops.diffratio.two_bin_gelu(
        pre, weight_large, cu_seqlens_large, cu_seqlens_small, rows, backend=backend
    )
