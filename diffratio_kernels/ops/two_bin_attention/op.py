"""`two_bin_attention`: attention among each sample's large set and among its small set, which is a prefix."""

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import Check
from ..._choice import Attention, attention_choice
from ..._triton.tiles import LARGEST_HEAD_DIM_OF_TWO_BINS
from ...types import Nested, Run
from ..attention.op import register_attention
from .two_passes import two_passes


def _check(query, key, value, *flat):
    *nested, scale = flat
    nested = Nested(*nested)
    check = Check("two_bin_attention")
    check.grouped_heads(query, key, value, "T")
    check.nested(nested, ("query", query.shape[0]), ("small", nested.small))
    if scale is not None:
        check.positive("scale", scale)


def choose_two_bin_attention(backend: str, query: Tensor, key: Tensor, *flat, gradient: bool = False) -> str:
    """The backend for these arguments, flat as in the schema but for the scale."""
    _, cu_seqlens, _, *sizes, small = flat[:6]
    if backend == "auto" and query.device.type == "cuda" and not gradient:
        samples = cu_seqlens.shape[0] - 1
        padded = [samples * size for size in sizes] != [query.shape[0], small]
        heads = query.shape[2], query.dtype, query.device, query.shape[1] != key.shape[1]
        call = Attention("two_bins", *sizes, *heads, padded, False)
        backend = attention_choice(call).backend
    unfit = "triton" if query.shape[2] > LARGEST_HEAD_DIM_OF_TWO_BINS else None
    return choose("two_bin_attention", backend, query.device, query.dtype, unfit)


def _launcher(backend, query, key, value, *flat):
    *nested, scale = flat
    return _launched(backend, query, key, value, Nested(*nested), scale)


def _launched(backend, *arguments):
    if backend in ("cudnn", "varlen", "flash_attn"):  # libraries know one bin
        return two_passes, (kernels("attention", backend).attention, *arguments)
    return kernels("two_bin_attention", backend).two_bin_attention, arguments


def _fake(query, *flat):
    *_, small, _ = flat
    return query.new_empty(query.shape[0] + small, *query.shape[1:])


register_attention(
    "two_bin_attention",
    "Tensor cu_seqlens_large, Tensor cu_seqlens_small, SymInt max_seqlen_large, SymInt max_seqlen_small, "
    "SymInt small",
    ("float? scale",),
    bundle=Nested,
    fake=_fake,
    check=_check,
    launcher=_launcher,
    chosen=choose_two_bin_attention,
)


def two_bin_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_large: Tensor,
    cu_seqlens_small: Tensor,
    max_seqlen_large: int,
    max_seqlen_small: int,
    small: int,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Self-attention of two nested sets of rows.

    Args:
        query: [T, H, d], d a multiple of 8.
        key, value: [T, h, d], H a multiple of h: head i of query attends by head i // (H // h) of both.
        cu_seqlens_large, cu_seqlens_small: int32 [B+1]: sample b's rows, and how many of the first of them
            are its small set.
        max_seqlen_large, max_seqlen_small: the most rows of one sample, in each set.
        small: S = cu_seqlens_small[B], the small rows of all samples.
        scale: of the products; None is 1/sqrt(d).
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T + S, H, d]: attention among each sample's large set, then among its small set.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> large = torch.tensor([0, 180, 360], dtype=torch.int32)
        >>> small = torch.tensor([0, 154, 308], dtype=torch.int32)
        >>> both = two_bin_attention(q, k, v, large, small, 180, 154, 308)
        >>> both.shape == (360 + 308, H, D // H)
        True
    """
    return torch.ops.diffratio.two_bin_attention(
        query, key, value, cu_seqlens_large, cu_seqlens_small, max_seqlen_large, max_seqlen_small, small,
        scale=scale, backend=backend,
    )  # fmt: skip


def run_two_bin_attention(run: Run, query: Tensor, key: Tensor, value: Tensor, nested: Nested) -> Tensor:
    """`two_bin_attention` as blocks run it: [T, H, d] -> [T + S, H d]."""
    cu_seqlens = nested.cu_seqlens_large, nested.cu_seqlens_small
    flat = *cu_seqlens, nested.max_seqlen_large, nested.max_seqlen_small, nested.small
    if run.direct:
        chosen = choose_two_bin_attention(run.attention, query, key, value, *flat)
        function, arguments = _launched(chosen, query, key, value, nested, None)
        return function(*arguments).flatten(1)
    return torch.ops.diffratio.two_bin_attention(query, key, value, *flat, backend=run.attention).flatten(1)
